//! Finds the word that somebody probably meant, and makes foreign text fit for a message.

use strsim::damerau_levenshtein;

/// The one of `known` that `text` is most likely a slip of.
pub fn closest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|word| (distance(&text, word), word))
        .filter(|(distance, word)| *distance <= slips_allowed(word))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// A word inside the other (`args`, `build_args`) counts as one slip.
fn distance(text: &str, word: &str) -> usize {
    let known = word.to_lowercase().replace('-', "_");
    // The text is a stranger's, and comparing takes the product of both lengths.
    if text.len() > 4 * known.len() {
        return usize::MAX;
    }
    let slips = damerau_levenshtein(text, &known);
    let is_part = text.len() >= 4 && known.contains(text);
    if is_part { slips.min(1) } else { slips }
}

fn slips_allowed(word: &str) -> usize {
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

/// `text` in one line of at most 80 characters, with control characters spelled out.
pub fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut shown: String = text.chars().take(CHARACTERS_MAX).flat_map(escaped).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn escaped(character: char) -> Box<dyn Iterator<Item = char>> {
    // Invisible characters outside ASCII (a zero-width space, a change of direction) too.
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
    fn a_slip_finds_its_word() {
        for (slip, word) in [
            ("platfrom", "platform"),
            ("platfroms", "platforms"),
            ("Platforms", "platforms"),
            ("build-args", "build_args"),
            ("buildArgs", "build_args"),
            ("args", "build_args"),
            ("file", "dockerfile"),
            ("contxt", "context"),
        ] {
            assert_eq!(closest(slip, KEYS), Some(word), "{slip}");
        }
    }

    #[test]
    fn a_word_of_its_own_finds_none() {
        for word in ["image", "services", "x", "", "depends_on", &"platform".repeat(50)] {
            assert_eq!(closest(word, KEYS), None, "{word}");
        }
    }

    #[test]
    fn shown_text_stays_in_its_line() {
        assert_eq!(shown("a\nb\u{202e}é"), "a\\nb\\u{202e}é");
        assert_eq!(shown(&"x".repeat(81)).chars().count(), 81);
    }
}
