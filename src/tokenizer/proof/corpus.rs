//! The texts that both tokenizers encode: many scripts, code, numbers, white space, emoji.

/// Sections that begin with `=== Name`, each line a text.
const LINES: &str = include_str!("corpus.txt");

/// What editors would not leave alone.
const SPACES: &[&str] = &[
    " ",
    "  ",
    "   ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\t\t\n  \n",
    "a b",
    "a  b",
    "a   b",
    "a    b     c      d",
    " a",
    "  a",
    "a ",
    "a  ",
    "a\tb",
    "a\t\tb",
    "a \t b",
    "a\nb",
    "a\n\nb",
    "a\n\n\n\nb",
    "a \n b",
    "a  \n  b",
    "a\r\nb\r\n\r\nc",
    "a\rb",
    "\n    if x:\n        y = 1\n\n        return y\n",
    "{\n\t\"a\": [\n\t\t1,\n\t\t2\n\t]\n}\n",
    "1  2   3\t4\n5",
    "!  ?   .\t,\n;",
    "a\u{a0}b \u{2003}c\u{3000}d\u{2028}e\u{85}f\u{b}g\u{c}h",
];

/// Marks, joiners and characters that are hardly ever typed.
const MARKS: &[&str] = &[
    "e\u{301} a\u{308}o\u{308}u\u{308} n\u{303} A\u{30a} I\u{307}",
    "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}",
    "\u{915}\u{93c} \u{958} \u{9a1}\u{9bc} \u{9dc} \u{b21}\u{b3c}",
    "a\u{200b}b\u{200c}c\u{200d}d\u{2060}e\u{ad}f\u{feff}g",
    "\u{feff}start",
    "\u{202e}right to left\u{202c} \u{2066}isolated\u{2069}",
    "\u{1}\u{2}\u{7f}\u{80}\u{9f}",
    "\u{e000}\u{f8ff} \u{fffd} \u{10ffff} \u{1f9ff}\u{20d0}",
    "a\u{300}\u{301}\u{302}\u{303}b",
];

/// Every text, with the name of its section. A section as a whole is a text too, for what happens between lines.
pub(super) fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sections = LINES.split("\n=== ").filter_map(|section| section.trim_start_matches("=== ").split_once('\n'));
    let lines = sections.flat_map(|(name, body)| {
        let whole = std::iter::once((name, body));
        whole.chain(body.lines().filter(|line| !line.is_empty()).map(move |line| (name, line)))
    });
    let named = |name, texts: &'static [&'static str]| texts.iter().map(move |text| (name, *text));
    lines.chain(named("white space", SPACES)).chain(named("marks", MARKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_many_scripts() {
        let all: Vec<_> = texts().collect();
        assert!(all.len() > 150 && all.iter().all(|(name, text)| !name.is_empty() && !text.is_empty()));
        let has = |first: char| all.iter().any(|(_, text)| text.chars().any(|c| (0..0x40).contains(&(c as i64 - first as i64))));
        // Greek, Cyrillic, Hebrew, Arabic, Devanagari, Bengali, Tamil, Thai, Hangul, kana, Han, emoji.
        for first in "\u{370}\u{400}\u{590}\u{600}\u{900}\u{980}\u{b80}\u{e00}\u{ac00}\u{3040}\u{4e00}\u{1f600}".chars() {
            assert!(has(first), "{first:?}");
        }
    }
}
