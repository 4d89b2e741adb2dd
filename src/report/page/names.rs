//! Short names for plots: what a set of file names does not have in common.

/// Characters between the words of a file name; `_` is part of words such as `Q4_K_M`.
const SEPARATORS: [char; 4] = ['-', '.', ' ', '/'];

/// The names without the words that all of them begin and end with: `m-Q4_K.gguf` and `m-Q8_0.gguf` are `Q4_K` and `Q8_0`.
///
/// A name always keeps something. A name by itself loses its folders and `.gguf` only.
pub fn short_names<S: AsRef<str>>(names: &[S]) -> Vec<String> {
    let bare: Vec<&str> = names.iter().map(AsRef::as_ref).map(|name| name.strip_suffix(".gguf").unwrap_or(name)).collect();
    let [first, _, ..] = bare[..] else {
        return bare.into_iter().filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect();
    };

    let separators = || first.match_indices(SEPARATORS).map(|(at, _)| at);
    let is_prefix = |at: &usize| bare.iter().all(|name| name.starts_with(&first[..at + 1]));
    let is_suffix = |at: &usize| bare.iter().all(|name| name.ends_with(&first[*at..]));
    let prefix = separators().rfind(is_prefix).map_or(0, |at| at + 1);
    let suffix = separators().find(is_suffix).map_or(0, |at| first.len() - at);

    let (prefix, suffix) = if bare.iter().all(|name| prefix + suffix < name.len()) { (prefix, suffix) } else { (0, 0) };
    bare.into_iter().map(|name| name[prefix..name.len() - suffix].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_words_go_and_different_ones_stay() {
        let cases: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&["out/llama-Q4_K_M.gguf"], &["llama-Q4_K_M"]),
            (&["m-Q4_K_M.gguf", "m-Q4_0.gguf", "m-IQ2_XS.gguf"], &["Q4_K_M", "Q4_0", "IQ2_XS"]),
            (&["a/Q4_K-imat.gguf", "a/Q5_K-imat.gguf"], &["Q4_K", "Q5_K"]),
            (&["x.gguf", "x.gguf"], &["x", "x"]),
            (&["abc", "abd"], &["abc", "abd"]),
            (&["é-ä", "é-ö"], &["ä", "ö"]),
            (&["a-", "a-b"], &["a-", "a-b"]),
        ];
        for (names, short) in cases {
            assert_eq!(short_names(names), *short, "{names:?}");
        }
    }
}
