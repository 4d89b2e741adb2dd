//! What is checked of a chat template before a child process gets it, and of what comes back.

use serde::{Deserialize, Serialize};

/// Bytes of a template. The longest known has 30,000.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Brackets open at once: those of the deepest template known are 7.
const NESTING_MAX: usize = 100;
/// Bytes of one rendered text.
pub const OUTPUT_MAX: usize = 1 << 20;
/// Bytes of what a child answers: texts, each of whose bytes is up to six in JSON.
pub const ANSWER_BYTES_MAX: u64 = 4 * 6 * OUTPUT_MAX as u64;

/// What became of one conversation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rendered {
    Text(String),
    Error(String),
}

/// Refuses what no sound template is: what it is read with is recursive.
///
/// # Errors
/// What is wrong.
pub fn check(template: &str) -> Result<(), String> {
    if template.len() > TEMPLATE_BYTES_MAX {
        return Err(format!("has {} bytes, more than {TEMPLATE_BYTES_MAX}", template.len()));
    }
    if nesting(template) > NESTING_MAX {
        return Err(format!("has more than {NESTING_MAX} brackets open at once"));
    }
    Ok(())
}

/// The texts in an answer, or why there is none of a conversation.
///
/// # Errors
/// The answer is none.
pub fn texts(answer: &[u8]) -> Result<Vec<Result<String, String>>, String> {
    let texts: Vec<Rendered> = serde_json::from_slice(answer).map_err(|e| format!("an answer that is cut short: {e}"))?;
    let text = |rendered| match rendered {
        Rendered::Text(text) => Ok(text),
        Rendered::Error(why) => Err(why),
    };
    Ok(texts.into_iter().map(text).collect())
}

/// The most brackets that are open at once, wherever they stand.
fn nesting(template: &str) -> usize {
    let (mut open, mut deepest) = (0_usize, 0);
    for byte in template.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_counted_while_they_are_open() {
        assert_eq!(nesting("{{ a[(1)] }} ) {{ b }}"), 4);
        assert!(check(&"[".repeat(NESTING_MAX)).is_ok() && check(&"[".repeat(NESTING_MAX + 1)).is_err());
        assert!(check(&" ".repeat(TEMPLATE_BYTES_MAX)).is_ok() && check(&" ".repeat(TEMPLATE_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn an_answer_is_texts_or_errors() {
        let answer = serde_json::to_vec(&[Rendered::Text("a".into()), Rendered::Error("b".into())]).expect("JSON");
        assert_eq!(texts(&answer), Ok(vec![Ok("a".to_owned()), Err("b".to_owned())]));
        assert!(texts(&answer[..answer.len() - 1]).is_err() && texts(b"").is_err());
    }
}
