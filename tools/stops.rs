//! `--stop`: texts at which generation ends, found while the text comes in parts.

/// Looks for the texts in what is generated. What may become one of them is held back.
#[derive(Debug)]
pub struct Stops<'a> {
    texts: &'a [String],
    held: String,
}

impl<'a> Stops<'a> {
    /// `texts`: none of them empty.
    pub fn new(texts: &'a [String]) -> Stops<'a> {
        Stops { texts, held: String::new() }
    }

    /// The next part: what of it, and of what was held back, belongs to the text for certain; and the text that ends it here, if any.
    pub fn add(&mut self, part: &str) -> (String, Option<&'a str>) {
        self.held += part;
        let found =
            self.texts.iter().filter_map(|text| Some((self.held.find(text.as_str())?, text.as_str()))).min_by_key(|(at, _)| *at);
        if let Some((at, text)) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(text));
        }
        let may_begin = |at: &usize| self.texts.iter().any(|text| text.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let held = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// What was held back, as nothing comes after it.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    fn run(texts: &[&str], parts: &[&str]) -> (Vec<String>, Option<String>, String) {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let mut stops = Stops::new(&texts);
        let mut shown = Vec::new();
        for part in parts {
            let (text, stop) = stops.add(part);
            shown.push(text);
            if let Some(stop) = stop {
                return (shown, Some(stop.to_owned()), String::new());
            }
        }
        (shown, None, stops.finish())
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_text_is_found_across_parts_and_what_may_become_it_is_held_back() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), (strings(&["a ", "", ""]), Some("END".into()), String::new()));
        assert_eq!(run(&["END"], &["a E", "NE", "x"]), (strings(&["a ", "EN", "Ex"]), None, String::new()));
        assert_eq!(run(&["END"], &["a", " EN"]), (strings(&["a", " "]), None, "EN".into()));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), (strings(&["", "", "a", ""]), Some("aab".into()), String::new()));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(run(&["\n\n", "User:"], &["hi User: x\n\n"]), (strings(&["hi "]), Some("User:".into()), String::new()));
        assert_eq!(run(&[], &["as it is", "€"]), (strings(&["as it is", "€"]), None, String::new()));
        assert_eq!(run(&["€!"], &["5 €", "?"]), (strings(&["5 ", "€?"]), None, String::new()));
    }
}
