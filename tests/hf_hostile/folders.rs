//! Folders: shard names, links, indexes, config.json, and what is no model folder at all.

use super::*;

#[test]
fn shards_are_plain_names_inside_the_folder() {
    for name in [
        "../x.safetensors",
        "/etc/passwd",
        "/etc/x.safetensors",
        "a/../../b.safetensors",
        "a\\..\\b.safetensors",
        "C:x.safetensors",
        "a\0.safetensors",
        "",
        ".",
        "..",
        "sub/a.safetensors",
        "model.bin",
        INDEX,
    ] {
        assert_eq!(fault(open_index(&index(&[("a", name)]))), Fault::ShardName, "{name:?}");
    }
    for value in ["1", "null", "[]", "{\"a\":\"b\"}"] {
        assert_eq!(fault(open_index(&format!(r#"{{"weight_map":{{"a":{value}}}}}"#))), Fault::ShardName, "{value}");
    }
}

#[test]
fn only_regular_files_are_opened_and_only_weights_from_elsewhere() {
    let good = file(&format!("{{{}}}", entry("a", 0, 4)), 4);
    let outside = common::scratch();
    let elsewhere = outside.path().join("model.safetensors");
    fs::write(&elsewhere, &good).unwrap();

    let place = |make: &dyn Fn(&Path)| {
        let dir = folder(&[]);
        make(&dir.path().join("model.safetensors"));
        open(&dir)
    };
    assert_eq!(fault(place(&|path| fs::create_dir(path).unwrap())), Fault::NotRegularFile);
    assert_eq!(fault(place(&|path| make_fifo(path))), Fault::NotRegularFile);
    assert_eq!(fault(place(&|path| symlink("/dev/zero", path).unwrap())), Fault::NotRegularFile);
    assert_eq!(place(&|path| symlink(&elsewhere, path).unwrap()).unwrap().tensors().len(), 1, "weights kept elsewhere");
    assert_eq!(fault(place(&|path| symlink("/etc/passwd", path).unwrap())), Fault::HeaderTooLarge);
    assert!(matches!(place(&|path| symlink(path, path).unwrap()), Err(Error::Io { .. })), "a link to itself");
    assert!(matches!(place(&|path| symlink("nowhere", path).unwrap()), Err(Error::Io { .. })), "a dangling link");
    let to_fifo = |path: &Path| {
        make_fifo(&path.with_file_name("pipe"));
        symlink("pipe", path).unwrap();
    };
    assert_eq!(fault(place(&to_fifo)), Fault::NotRegularFile);
    let inside = |path: &Path| {
        fs::create_dir(path.with_file_name("sub")).unwrap();
        fs::write(path.with_file_name("sub").join("w"), &good).unwrap();
        symlink("sub/w", path).unwrap();
    };
    assert_eq!(place(&inside).unwrap().tensors().len(), 1, "a link inside the folder");
    // The same holds for every other file of the folder.
    let dir = folder(&[("model.safetensors", &good)]);
    make_fifo(&dir.path().join("tokenizer.json"));
    symlink("/etc/passwd", dir.path().join("tokenizer_config.json")).unwrap();
    let opened = open(&dir).unwrap();
    assert_eq!(fault(opened.read_optional("tokenizer.json")), Fault::NotRegularFile);
    assert_eq!(fault(opened.read_optional("tokenizer_config.json")), Fault::OutsideFolder);
    assert_eq!(fault(opened.read_optional("../config.json")), Fault::ShardName);
    assert!(opened.read_optional("merges.txt").unwrap().is_none());
}

fn make_fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
}

#[test]
fn the_hub_cache_may_keep_content_in_its_blobs() {
    let cache = common::scratch();
    let model = cache.path().join("models--org--Tiny-1B");
    let snapshot = model.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(model.join("blobs")).unwrap();
    fs::write(model.join("blobs/c"), CONFIG).unwrap();
    fs::write(model.join("blobs/w"), file(&format!("{{{}}}", entry("a", 0, 4)), 4)).unwrap();
    symlink("../../blobs/c", snapshot.join("config.json")).unwrap();
    symlink("../../blobs/w", snapshot.join("model.safetensors")).unwrap();
    let folder = Folder::open(&snapshot).unwrap();
    assert_eq!((folder.tensors().len(), folder.model_id().as_str()), (1, "org/Tiny-1B"));

    fs::write(model.join("secret"), "x").unwrap();
    symlink("../../secret", snapshot.join("tokenizer.json")).unwrap();
    assert_eq!(fault(folder.read_optional("tokenizer.json")), Fault::OutsideFolder, "beside the blobs is outside");
}

#[test]
fn index_and_shards_agree() {
    let good = index(&[("a", "one.safetensors"), ("b", "two.safetensors")]);
    let opened = open_index(&good).unwrap();
    assert_eq!(opened.tensors().iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(opened.notes().is_empty());

    for (text, expected) in [
        (index(&[("a", "one.safetensors"), ("b", "three.safetensors")]), Fault::ShardMissing),
        (index(&[("a", "two.safetensors"), ("b", "two.safetensors")]), Fault::IndexMismatch),
        (index(&[("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "two.safetensors")]), Fault::IndexMismatch),
        (index(&[("a", "one.safetensors"), ("c", "two.safetensors")]), Fault::IndexMismatch),
        (index(&[("a", "one.safetensors"), ("a", "one.safetensors"), ("b", "two.safetensors")]), Fault::DuplicateKey),
        (index(&[("a", "one.safetensors"), ("\u{61}", "two.safetensors")]), Fault::DuplicateKey),
        (r#"{"weight_map":{},"weight_map":{}}"#.to_owned(), Fault::DuplicateKey),
        (r#"{"metadata":{},"metadata":{},"weight_map":{}}"#.to_owned(), Fault::DuplicateKey),
        (r#"{"metadata":{"total_size":1,"total_size":2},"weight_map":{}}"#.to_owned(), Fault::DuplicateKey),
        (r#"{"metadata":{}}"#.to_owned(), Fault::IndexMismatch),
        ("[]".to_owned(), Fault::Json),
        (r#"{"weight_map":[]}"#.to_owned(), Fault::Json),
        (good[..good.len() - 1].to_owned(), Fault::Json),
    ] {
        assert_eq!(fault(open_index(&text)), expected, "{text}");
    }

    // Not worth refusing a model for: it is a note.
    let opened = open_index(&good.replace(":8", ":9")).unwrap();
    assert!(opened.notes()[0].contains("total_size"), "{:?}", opened.notes());
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let twice = file(&format!("{{{}}}", entry("a", 0, 4)), 4);
    let dir = two_shards(&index(&[("a", "one.safetensors"), ("b", "two.safetensors")]));
    fs::write(dir.path().join("two.safetensors"), &twice).unwrap();
    assert_eq!(fault(open(&dir)), Fault::IndexMismatch);
    let dir = folder(&[("model-00001-of-00002.safetensors", &twice), ("model-00002-of-00002.safetensors", &twice)]);
    assert_eq!(fault(open(&dir)), Fault::DuplicateTensor);
}

#[test]
fn one_set_of_weights_is_there() {
    let one = file(&format!("{{{}}}", entry("a", 0, 4)), 4);
    let two = file(&format!("{{{}}}", entry("b", 0, 4)), 4);
    let dir = two_shards(&index(&[("a", "one.safetensors"), ("b", "two.safetensors")]));
    fs::write(dir.path().join("model.safetensors"), &one).unwrap();
    assert_eq!(fault(open(&dir)), Fault::Ambiguous, "a single file beside an index of others");
    let dir = folder(&[("model.safetensors", &one), (INDEX, index(&[("a", "model.safetensors")]).as_bytes())]);
    assert!(open(&dir).is_ok(), "an index of the single file");

    let numbered = |no: u32, count: u32| format!("model-{no:05}-of-{count:05}.safetensors");
    let dir = folder(&[(&numbered(1, 2), &one), (&numbered(2, 2), &two)]);
    assert_eq!(open(&dir).unwrap().tensors().len(), 2, "complete shards without an index");
    fs::write(dir.path().join("model.safetensors"), &one).unwrap();
    assert_eq!(fault(open(&dir)), Fault::Ambiguous);
    let dir = folder(&[(&numbered(1, 2), &one), (&numbered(2, 2), &two), (&numbered(2, 3), &two)]);
    assert_eq!(fault(open(&dir)), Fault::Ambiguous, "shards of two sets");
    assert_eq!(fault(open(&folder(&[(&numbered(1, 2), &one)]))), Fault::ShardMissing);
    assert_eq!(fault(open(&folder(&[(&numbered(1, 99_999), &one)]))), Fault::ShardMissing);
}

#[test]
fn the_order_of_files_and_headers_does_not_show() {
    let shard = |names: &[&str]| {
        let entries: Vec<String> = names.iter().enumerate().map(|(i, name)| entry(name, i as u64 * 4, i as u64 * 4 + 4)).collect();
        file(&format!("{{{}}}", entries.join(",")), names.len() * 4)
    };
    let order = |first: &[&str], second: &[&str], listed: &[&str]| {
        let shard_of = |name: &&str| if first.contains(name) { "m1.safetensors" } else { "m2.safetensors" };
        let text = index(&listed.iter().map(|name| (*name, shard_of(name))).collect::<Vec<_>>());
        let text = text.replace("\"metadata\":{\"total_size\":8},", "");
        let dir = folder(&[("m2.safetensors", &shard(second)), ("m1.safetensors", &shard(first)), (INDEX, text.as_bytes())]);
        open(&dir).unwrap().tensors().iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>()
    };
    let expected = ["d", "l.10", "l.2", "a", "b", "c"];
    assert_eq!(order(&["l.2", "d", "l.10"], &["c", "a", "b"], &["a", "b", "c", "d", "l.2", "l.10"]), expected);
    assert_eq!(order(&["l.10", "l.2", "d"], &["b", "c", "a"], &["l.10", "c", "d", "b", "l.2", "a"]), expected);
}

#[test]
fn config_fields_are_of_their_type_and_range() {
    let read = |text: &str| {
        Config::parse("config.json", text.as_bytes()).and_then(|config| Ok(arch::find(&config)?.read(&config)?.hparams().clone()))
    };
    assert!(read(CONFIG).is_ok());
    for value in ["-1", "1.5", "\"4096\"", "1e308", "9223372036854775808", "4294967296", "4096.0", "true", "[]", "null"] {
        let text = CONFIG.replace("\"hidden_size\": 16", &format!("\"hidden_size\": {value}"));
        match read(&text) {
            Err(Error::Malformed { fault: Fault::ConfigField, place, .. }) => assert_eq!(place, Place::Field("hidden_size".into())),
            other => panic!("{value}: {other:?}"),
        }
    }
    let layers = |value: &str| read(&CONFIG.replace("\"num_hidden_layers\": 1", &format!("\"num_hidden_layers\": {value}")));
    assert_eq!(fault(layers("2147483648")), Fault::HparamRange);
    assert_eq!(fault(layers("1e400")), Fault::Json);

    for (text, expected) in [
        ("[]", Fault::Json),
        ("", Fault::Json),
        ("{\"a\":nan}", Fault::Json),
        ("{\"hidden_size\":1,\"hidden_size\":2}", Fault::DuplicateKey),
        ("{\"text_config\":{\"a\":1,\"a\":2}}", Fault::DuplicateKey),
        ("{\"text_config\":[]}", Fault::ConfigField),
    ] {
        assert_eq!(fault(read(text)), expected, "{text}");
    }
    for value in ["NaN", "-Infinity"] {
        let error =
            read(&CONFIG.replace("\"vocab_size\": 10", &format!("\"vocab_size\": 10, \"rope_theta\": {value}"))).unwrap_err();
        assert!(
            error.to_string().contains(&format!("rope_theta: expected a number that fits a 32-bit float, found {value}")),
            "{error}"
        );
    }
    assert!(
        read(&CONFIG.replace("\"vocab_size\": 10", "\"vocab_size\": 10, \"unused\": [NaN, -Infinity], \"vocab_size\": 10")).is_ok()
    );
    let with = |field: &str| read(&CONFIG.replace("\"vocab_size\": 10", &format!("\"vocab_size\": 10, {field}")));
    for field in [
        r#""rope_scaling": "linear""#,
        r#""rope_scaling": {"rope_type": 1}"#,
        r#""rope_scaling": {"factor": 2}"#,
        r#""rope_scaling": {"rope_type": "linear"}"#,
        r#""rope_scaling": {"rope_type": "linear", "factor": "2"}"#,
        r#""rope_scaling": {"rope_type": "linear", "factor": 1e39}"#,
        r#""rope_scaling": {"rope_type": "yarn", "factor": 2}"#,
        r#""rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0.5}"#,
        r#""rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "linear", "factor": 3}"#,
        r#""rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}"#,
        r#""rope_theta": 10000, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}"#,
        r#""rope_theta": "10000""#,
        r#""rms_norm_eps": null, "tie_word_embeddings": "yes""#,
        r#""rms_norm_eps": 1e39"#,
    ] {
        assert_eq!(fault(with(field)), Fault::ConfigField, "{field}");
    }
}

#[test]
fn small_files_have_a_limit() {
    for name in ["config.json", "generation_config.json", INDEX, "README.md"] {
        let dir = folder(&[]);
        fs::File::create(dir.path().join(name)).unwrap().set_len(1 << 30).unwrap();
        assert!(matches!(open(&dir), Err(Error::Limit { .. })), "{name}");
    }
    let dir = folder(&[("model.safetensors", &file("{}", 0))]);
    fs::File::create(dir.path().join("tokenizer.json")).unwrap().set_len(1 << 30).unwrap();
    assert!(matches!(open(&dir).unwrap().read_optional("tokenizer.json"), Err(Error::Limit { .. })));
}

#[test]
fn a_config_of_millions_of_values_takes_little_heap() {
    let text = format!("{{\"a\":[{}1]}}", "1,".repeat(3_000_000));
    let (result, peak) = peak_bytes(|| Config::parse("config.json", text.as_bytes()));
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    assert!(peak <= 4 * text.len() as u64, "{peak} bytes of heap for {}", text.len());
}

#[test]
fn an_invalid_generation_config_is_a_note() {
    let dir = folder(&[("model.safetensors", &file("{}", 0)), ("generation_config.json", b"{,}")]);
    let opened = open(&dir).unwrap();
    assert!(opened.generation_config().is_none());
    assert!(opened.notes()[0].contains("generation_config.json"), "{:?}", opened.notes());
}

// What is not a model folder at all: the message says what to do.

#[test]
fn what_is_no_model_folder_is_told_what_would_be() {
    let says = |result: Result<Folder>, words: &[&str]| {
        let text = result.unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
    };
    let dir = common::scratch();
    let path = dir.path();
    says(Folder::open(path), &["config.json", "empty"]);
    fs::write(path.join("model.gguf"), "GGUF").unwrap();
    says(Folder::open(path), &["model.gguf", "ggforge quantize"]);
    says(Folder::open(path.join("model.gguf")), &["GGUF file", "ggforge quantize"]);
    fs::write(path.join("config.json"), CONFIG).unwrap();
    says(Folder::open(path.join("config.json")), &["is a file", "folder"]);
    says(Folder::open(path.join("nothing")), &["cannot open the folder"]);
    says(Folder::open(path), &["model.safetensors", "incomplete"]);
    fs::write(path.join("pytorch_model.bin"), "").unwrap();
    says(Folder::open(path), &["pytorch_model.bin", "save_pretrained"]);
    let adapter = common::scratch();
    fs::write(adapter.path().join("adapter_config.json"), "{}").unwrap();
    says(Folder::open(adapter.path()), &["LoRA", "merge"]);
}

/// Beside them, everything else in the folder is sound.
#[test]
fn what_a_failed_download_left_in_place_of_any_file_is_said_as_for_weights() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17210019\n";
    let left = [
        (pointer, "a Git LFS pointer, not the file itself; run `git lfs pull` in the folder"),
        ("<!doctype html><html>Entry not found</html>", "a web page, not the file itself; download it again"),
        ("Entry not found", "a server's error message, not the file itself; download it again"),
    ];
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"];
    let more = ["added_tokens.json", "tokenizer.model", "model.safetensors", INDEX];
    for name in names.into_iter().chain(more) {
        for (content, sentence) in left {
            let dir = common::scratch();
            for file in fs::read_dir(common::fixture("hf/forge-3m")).unwrap().map(|file| file.unwrap()) {
                fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
            }
            if name == INDEX {
                fs::remove_file(dir.path().join("model.safetensors")).unwrap();
            }
            fs::write(dir.path().join(name), content).unwrap();
            let mut command = common::ggforge();
            command.arg("convert").arg(dir.path()).args(["-t", "Q8_0", "-o"]).arg(dir.path().join("a.gguf"));
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(name) && said.contains(sentence), "{name} of {content:?}: {said}");
            // generation_config.json and the like may be a warning: what is read of them can be done without.
            assert!(output.status.code() == Some(3) || said.starts_with("warning: "), "{name}: {said}");
        }
    }
    for (content, sentence) in [("", "an empty file; download it again"), ("\u{feff}{}", "a byte order mark")] {
        let dir = folder(&[("model.safetensors", &file(&format!("{{{}}}", entry("a", 0, 4)), 4))]);
        fs::write(dir.path().join("config.json"), content).unwrap();
        let error = Folder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn files_of_other_formats_are_recognised() {
    for (bytes, word) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (b"PK\x03\x04aaaaaaaa", "pickle"),
        (b"\x80\x02}q\x00aaaaaaa", "pickle"),
        (b"GGUF\x03\0\0\0aaaa", "ggforge quantize"),
        (b"<!doctype html><html>", "web page"),
    ] {
        let result = open(&folder(&[("model.safetensors", bytes)]));
        assert!(result.as_ref().unwrap_err().to_string().contains(word), "{result:?}");
        assert_eq!(fault(result), Fault::UnsupportedFormat);
    }
}

#[test]
fn a_length_that_looks_like_another_format_is_a_length() {
    // The first bytes of pickles and of web pages.
    for length in [0x280, 0x380, 0x480, 0x580, 0x1_0280, 0x213c, 0x683c] {
        let header = format!("{{{},{}}}", entry("a", 0, 8), entry("b", 8, 20));
        let padded = header.clone() + &" ".repeat(length - header.len());
        let result = open(&folder(&[("model.safetensors", &file(&padded, 20))]));
        assert_eq!(result.unwrap_or_else(|e| panic!("{length:#x}: {e}")).tensors().len(), 2);
    }
}

#[test]
fn mutated_json_never_panics() {
    let seeds: [(&str, String); 3] = [
        ("config.json", CONFIG.to_owned()),
        (INDEX, index(&[("a", "one.safetensors"), ("b", "two.safetensors")])),
        ("generation_config.json", r#"{"top_k": 5, "temperature": 0.5}"#.to_owned()),
    ];
    let dir = two_shards(&seeds[1].1);
    let mut random = Random(2);
    for round in 0..3000 {
        let (name, text) = &seeds[round % seeds.len()];
        let mut bytes = text.clone().into_bytes();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        fs::write(dir.path().join(name), &bytes).unwrap();
        if let Ok(folder) = open(&dir)
            && let Ok(described) = arch::find(folder.config()).and_then(|found| found.read(folder.config()))
        {
            // The tensors are not a model's: any error is right, a panic is not.
            drop(described.map_tensors(folder.tensors(), folder.unreadable(), None));
        }
        fs::write(dir.path().join(name), text).unwrap();
    }
}

/// The fixture, opened by a relative path: its id is its name.
#[test]
fn the_fixture_opens() {
    let path: PathBuf = common::fixture("hf/forge-3m");
    let folder = Folder::open(&path).unwrap();
    assert_eq!((folder.tensors().len(), folder.model_id().as_str()), (38, "forge-3m"));
    assert!(folder.notes().is_empty() && folder.unreadable().is_empty());
    for tensor in folder.tensors() {
        assert_eq!(Ok(tensor.size_bytes), tensor.format.tensor_bytes(&tensor.shape), "{}", tensor.name);
    }
}
