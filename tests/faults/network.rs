//! File systems without unnamed files, as network ones are: the output is written under a temporary name.

use super::*;

/// The run, on a file system that refuses `O_TMPFILE`, with one more fault to inject.
fn run(place: &Place, fault: &str) -> std::process::Output {
    let share = place.path().join("share");
    fs::create_dir_all(&share).unwrap();
    let mut strace = Command::new("strace");
    // Of the calls that name the folder itself, the third asks for an unnamed file: the first opens it, the second lists it.
    strace.current_dir(place.path()).args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(&share).arg("-P").arg(share.join("out.gguf"));
    strace.args(["-e", "inject=openat:error=EOPNOTSUPP:when=3", "-e"]).arg(format!("inject={fault}"));
    strace.arg(env!("CARGO_BIN_EXE_ggforge")).args(["quantize", "in.gguf", "-t", "Q4_K_M", "-q", "-o"]).arg(share.join("out.gguf"));
    strace.output().unwrap()
}

#[test]
fn a_network_file_system_works_and_what_a_killed_run_leaves_is_swept() {
    let place = Place::new();
    if !tool("strace") {
        return;
    }
    let share = place.path().join("share");
    // Killed when the output is to get its name, then refused.
    let killed = run(&place, "rename,renameat,renameat2,link,linkat:signal=KILL:when=1");
    assert!(!killed.status.success());
    let left = names_in(&share);
    assert!(matches!(&left[..], [name] if name.starts_with(".out.gguf.tmp.")), "{left:?}");
    let refused = run(&place, "rename,renameat,renameat2,link,linkat:error=ESTALE");
    assert_eq!(refused.status.code(), Some(6), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(names_in(&share), [""; 0], "neither its own temporary file nor that of the killed run");

    let sound = run(&place, "close:delay_enter=1000");
    assert!(sound.status.success(), "{}", String::from_utf8_lossy(&sound.stderr));
    assert_eq!(names_in(&share), ["out.gguf"]);
    assert!(fs::read(share.join("out.gguf")).unwrap() == place.expected);
}
