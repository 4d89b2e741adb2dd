//! Power that goes away: an ext4 of its own is shut down without writing what is not on its disk yet, then looked at again.

use super::*;

/// Ends the file system that is the working directory, as a power cut does: `EXT4_IOC_SHUTDOWN` without flushing the journal.
const CUT: &str = "python3 -c 'import fcntl, os, struct; fcntl.ioctl(os.open(\".\", 0), 0x8004587d, struct.pack(\"I\", 2))'";

/// Runs `script` on an ext4, cuts the power and returns what the script and `after`, run on what is left, print on stdout. What they say on
/// stderr may come at any time: a run that meets the dead file system complains.
fn around_a_power_cut(place: &Place, script: &str, after: &str) -> Option<String> {
    if !(tool("mkfs.ext4") && tool("python3")) {
        return None;
    }
    let image = place.path().join("image");
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    // Work that still runs after the cut ends when it meets the dead file system.
    let script = format!("{script}; {CUT} || exit 99; wait; cd ..; umount disk; mount -o loop image disk; cd disk; {after}");
    on_own_disk(place, "mount -o loop image", &script).map(|(text, _)| text)
}

#[test]
fn a_finished_output_survives_a_power_cut() {
    let place = Place::new();
    // The copy shows that the cut is one: nothing else has brought it to the disk.
    let script = "echo old > out.gguf; sync -f .; ggforge quantize ../in.gguf -t Q4_K_M -o out.gguf --force -q; echo code $?; cp ../in.gguf copy";
    let Some(text) = around_a_power_cut(&place, script, "sha256sum out.gguf; cmp ../in.gguf copy || echo lost") else { return };
    let expected = format!("code 0\n{}", hex(&Sha256::digest(&place.expected)));
    assert!(text.contains(&expected) && text.contains("lost"), "{text}");
}

#[test]
fn a_power_cut_leaves_the_old_file_or_the_complete_new_one() {
    let place = Place::new();
    let hash = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let mut paint = Paint::new(11);
    for _ in 0..4 {
        let seconds = moment(&mut paint, place.duration).as_secs_f64();
        let script = format!(
            "printf '%s' '{}' > out.gguf; sync -f .; ggforge quantize ../in.gguf -t Q4_K_M -o out.gguf --force -q & sleep {seconds:.3}",
            String::from_utf8_lossy(OLD)
        );
        let Some(text) = around_a_power_cut(&place, &script, "sha256sum out.gguf; ls -A | grep -v lost+found") else { return };
        let is_whole = text.contains(&hash(OLD)) || text.contains(&hash(&place.expected));
        assert!(is_whole && text.ends_with("\nout.gguf\n"), "after {seconds} s: {text}");
    }
}
