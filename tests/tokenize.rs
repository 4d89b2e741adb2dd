//! Token ids against llama.cpp's own vectors and what its tokenizer says of whole texts.

mod common;

use std::fs;
use std::path::Path;

use ggforge::gguf::File;
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};

fn tokenizer(path: &Path) -> Tokenizer {
    let file = File::open(path).unwrap_or_else(|e| panic!("{e}"));
    Tokenizer::from_metadata(&file).unwrap_or_else(|e| panic!("{e}"))
}

/// The texts of an `.inp` file and the ids of the `.out` file beside it.
fn vectors(model: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |extension: &str| format!("{}.{extension}", model.display());
    let texts = fs::read_to_string(beside("inp")).expect("texts");
    let ids = fs::read_to_string(beside("out")).expect("ids");
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().expect("an id")).collect());
    texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).zip(ids).collect()
}

#[test]
fn ids_equal_the_vectors_of_every_vocabulary() {
    let Some(folder) = common::shared("vocab") else { return };
    let mut n_vocabularies = 0;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let tokenizer = tokenizer(&path);
        let vectors = vectors(&path);
        assert_eq!(vectors.len(), 46, "{}", path.display());
        for (text, wanted) in vectors {
            let found = tokenizer.encode(&text, Specials::Literal, Ends::Omit);
            assert_eq!(found, wanted, "{}: {text:?}", path.display());
        }
        n_vocabularies += 1;
    }
    assert_eq!(n_vocabularies, 9);
}
