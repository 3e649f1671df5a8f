//! Suggests the word that was probably meant, and formats foreign text for messages.

use strsim::damerau_levenshtein;

/// The word of `known` that `text` is most likely a misspelling of.
pub fn closest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|word| (distance(&text, word), word))
        .filter(|(distance, word)| *distance <= edits_allowed(word))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// The edit distance; a word inside the other (`args` in `build_args`) counts as one edit.
fn distance(text: &str, word: &str) -> usize {
    let known = word.to_lowercase().replace('-', "_");
    // The text is not trusted, and the comparison takes time proportional to both lengths' product.
    if text.len() > 4 * known.len() {
        return usize::MAX;
    }
    let edits = damerau_levenshtein(text, &known);
    let is_part = text.len() >= 4 && known.contains(text);
    if is_part { edits.min(1) } else { edits }
}

fn edits_allowed(word: &str) -> usize {
    (word.chars().count() / 3).clamp(1, 3)
}

/// The words as a list in backticks: `` `a`, `b` and `c` ``.
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `text` as one line of at most 80 characters, with control characters escaped.
pub fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut shown: String = text.chars().take(CHARACTERS_MAX).flat_map(escaped).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn escaped(character: char) -> Box<dyn Iterator<Item = char>> {
    // Invisible characters outside ASCII (zero-width spaces, direction marks) are escaped as well.
    if character.is_ascii_graphic() || character == ' ' || character.is_alphanumeric() {
        Box::new(std::iter::once(character))
    } else {
        Box::new(character.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 6] =
        ["context", "dockerfile", "platform", "platforms", "build_args", "timeout"];

    #[test]
    fn a_misspelling_finds_its_word() {
        for (misspelling, word) in [
            ("platfrom", "platform"),
            ("platfroms", "platforms"),
            ("Platforms", "platforms"),
            ("build-args", "build_args"),
            ("buildArgs", "build_args"),
            ("args", "build_args"),
            ("file", "dockerfile"),
            ("contxt", "context"),
        ] {
            assert_eq!(closest(misspelling, KEYS), Some(word), "{misspelling}");
        }
    }

    #[test]
    fn an_unrelated_word_finds_none() {
        for word in ["image", "services", "x", "", "depends_on", &"platform".repeat(50)] {
            assert_eq!(closest(word, KEYS), None, "{word}");
        }
    }

    #[test]
    fn shown_text_is_a_single_short_line() {
        assert_eq!(shown("a\nb\u{202e}é"), "a\\nb\\u{202e}é");
        assert_eq!(shown(&"x".repeat(81)).chars().count(), 81);
    }
}
