//! Row 54: sets of files that do not belong together.

use std::path::PathBuf;

use super::*;

/// A shard with one tensor. `extra` goes before the split keys.
fn shard(no: u16, count: u16, n_tensors: i32, tensor: &str) -> Gg {
    gg().kv("split.no", U16, no.to_le_bytes())
        .kv("split.count", U16, count.to_le_bytes())
        .kv("split.tensors.count", I32, n_tensors.to_le_bytes())
        .ti(tensor, &[4], ggml::F32, 0)
        .data(vec![0; 32])
}

struct Set {
    folder: tempfile::TempDir,
}

impl Set {
    /// A sound set of three.
    fn sound() -> Set {
        let set = Set { folder: common::scratch() };
        for (no, tensor) in [(0, "a"), (1, "b"), (2, "c")] {
            set.write(no, &shard(no, 3, 3, tensor));
        }
        set
    }

    fn path(&self, no: u16) -> PathBuf {
        self.folder.path().join(format!("m-{:05}-of-00003.gguf", no + 1))
    }

    fn write(&self, no: u16, gg: &Gg) {
        std::fs::write(self.path(no), gg.bytes()).expect("a writable folder");
    }

    /// Opening any of the shards fails for the same reason.
    #[track_caller]
    fn refused(&self, name: &str, fault: Fault) {
        for path in (0..3).map(|no| self.path(no)).filter(|path| path.exists()) {
            self.refused_from(name, &path, fault);
        }
    }

    #[track_caller]
    fn refused_from(&self, name: &str, path: &Path, fault: Fault) {
        match Model::open(path) {
            Err(error @ Error::Malformed { .. }) => {
                assert!(matches!(error, Error::Malformed { fault: found, .. } if found == fault), "{name}: {error}");
                assert_message(&error, &self.folder.path().to_string_lossy());
            }
            other => panic!("{name}: expected {}, got {other:?}", fault.name()),
        }
    }
}

#[test]
fn a_sound_set_is_one_model_from_any_shard() {
    let set = Set::sound();
    for no in 0..3 {
        let model = Model::open(set.path(no)).unwrap_or_else(|e| panic!("{e}"));
        let tensors: Vec<(&str, usize)> = model.tensors().iter().map(|t| (t.name.as_str(), t.file)).collect();
        assert_eq!(tensors, [("a", 0), ("b", 1), ("c", 2)]);
        assert_eq!(model.files()[2].path(), set.path(2));
        assert_eq!(model.to_metadata(), []);
    }
    let alone = common::scratch();
    let path = alone.path().join("any name.gguf");
    std::fs::write(&path, shard(0, 1, 1, "a").bytes()).expect("a writable folder");
    assert_eq!(Model::open(&path).expect("one shard of one").shards().len(), 1);
    std::fs::write(&path, shard(0, 0, 3, "a").bytes()).expect("a writable folder");
    assert_eq!(Model::open(&path).expect("a merged model").shards().len(), 1);
}

#[test]
fn row_54_split_keys() {
    let keys = |value_type: u32, count: &[u8]| {
        gg().kv("split.no", U16, [0, 0]).kv("split.count", value_type, count).kv("split.tensors.count", I32, d(1))
    };
    let set = Set::sound();
    set.write(0, &keys(U32, &d(3)));
    set.refused_from("count is a u32", &set.path(0), Fault::SplitKeyType);
    set.write(0, &gg().kv("split.count", U16, [3, 0]));
    set.refused_from("no is missing", &set.path(0), Fault::SplitKeyType);
    set.write(0, &shard(1, 0, 1, "a"));
    set.refused_from("count is 0", &set.path(0), Fault::SplitOrder);
    set.write(0, &keys(U16, &[255, 255]));
    set.refused_from("count is 65535", &set.path(0), Fault::SplitName);
    let path = set.folder.path().join("m-00001-of-65535.gguf");
    std::fs::copy(set.path(0), &path).expect("a copy");
    set.refused_from("count is 65535, and so is the name", &path, Fault::ShardMissing);
    let set = Set::sound();
    set.write(1, &gg().kv("split.no", U32, d(1)).kv("split.count", U16, [3, 0]).kv("split.tensors.count", I32, d(3)));
    set.refused("no of a later shard is a u32", Fault::SplitKeyType);
    let set = Set::sound();
    let path = set.folder.path().join("renamed.gguf");
    std::fs::rename(set.path(0), &path).expect("a new name");
    set.refused_from("another name", &path, Fault::SplitName);
}

#[test]
fn row_54_shards_that_do_not_belong_together() {
    let set = Set::sound();
    set.write(0, &shard(1, 3, 3, "a"));
    set.refused("the first is not number 0", Fault::SplitOrder);
    let set = Set::sound();
    set.write(2, &shard(1, 3, 3, "c"));
    set.refused("two of one number", Fault::SplitOrder);
    let set = Set::sound();
    set.write(2, &shard(3, 3, 3, "c"));
    set.refused("a number beyond the count", Fault::SplitOrder);
    for missing in 0..3 {
        let set = Set::sound();
        std::fs::remove_file(set.path(missing)).expect("a file");
        set.refused("one is missing", Fault::ShardMissing);
    }
    let set = Set::sound();
    set.write(1, &shard(1, 3, 4, "b"));
    set.refused("another number of tensors", Fault::ShardMismatch);
    let set = Set::sound();
    (0..3).for_each(|no| set.write(no, &shard(no, 3, 4, ["a", "b", "c"][no as usize])));
    set.refused("fewer tensors than declared", Fault::ShardMismatch);
    let set = Set::sound();
    set.write(1, &gg().kv("general.architecture", STRING, s("llama")));
    set.refused_from("a file that is no shard", &set.path(0), Fault::ShardMismatch);
    let set = Set::sound();
    set.write(0, &shard(0, 3, 3, "a").kv("general.architecture", STRING, s("llama")));
    set.write(1, &shard(1, 3, 3, "b").kv("general.architecture", STRING, s("gpt2")));
    set.refused("another architecture", Fault::ShardMismatch);
    let set = Set::sound();
    let of_llama = |no: u16, tensor: &str| shard(no, 3, 3, tensor).kv("general.architecture", STRING, s("llama"));
    (0..2).for_each(|no| set.write(no, &of_llama(no, ["a", "b"][usize::from(no)])));
    assert_eq!(Model::open(set.path(1)).expect("shards that repeat the architecture, or not").shards().len(), 3);
    let set = Set::sound();
    set.write(2, &shard(2, 3, 3, "b"));
    set.refused("a tensor in two shards", Fault::DuplicateTensor);
    let set = Set::sound();
    std::fs::write(set.path(1), b"version https://git-lfs.github.com/spec/v1\n").expect("a writable folder");
    set.refused_from("a shard that is no GGUF file", &set.path(0), Fault::NotGguf);
}

/// What is there and cannot be read is not called missing.
#[test]
fn a_shard_that_cannot_be_read_is_not_missing() {
    let set = Set::sound();
    std::fs::remove_file(set.path(1)).expect("a file");
    std::fs::create_dir(set.path(1)).expect("a folder of that name");
    let error = Model::open(set.path(0)).expect_err("a folder is no shard").to_string();
    assert!(error.contains("00002-of-00003") && !error.contains("does not exist"), "{error}");
}
