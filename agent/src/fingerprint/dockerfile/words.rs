//! Splits an instruction into words and flags, and removes their quotes, as `BuildKit` does.
//!
//! Source: `BuildKit`'s `frontend/dockerfile/shell/lex.go` and `parser/split_command.go`.

/// The words of `text`, with their quotes and escapes. `None`: a quote has no end.
pub(super) fn shell_words(text: &str) -> Option<Vec<&str>> {
    let (mut words, mut start, mut quote) = (Vec::new(), None, None);
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        if quote.is_none() && character.is_whitespace() {
            words.extend(start.take().map(|start| &text[start..at]));
            continue;
        }
        start.get_or_insert(at);
        match (character, quote) {
            // Nothing is escaped in single quotes.
            ('\\', None | Some('"')) => _ = characters.next(),
            ('"' | '\'', None) => quote = Some(character),
            _ if quote == Some(character) => quote = None,
            _ => {}
        }
    }
    if quote.is_some() {
        return None;
    }
    words.extend(start.map(|start| &text[start..]));
    Some(words)
}

/// `word` without quotes and escapes.
pub(super) fn unquoted(word: &str) -> String {
    let (mut text, mut quote) = (String::new(), None);
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None) => text.extend(characters.next()),
            ('\\', Some('"')) => match characters.next() {
                Some(escaped @ ('"' | '$' | '\\')) => text.push(escaped),
                other => text.extend(['\\'].into_iter().chain(other)),
            },
            ('"' | '\'', None) => quote = Some(character),
            _ if quote == Some(character) => quote = None,
            _ => text.push(character),
        }
    }
    text
}

/// The flags at the beginning of `text`, without their quotes, and what follows them.
pub(super) fn flags(text: &str) -> (Vec<String>, &str) {
    let (mut flags, mut rest) = (Vec::new(), text.trim_start());
    while rest.starts_with("--") {
        let (flag, others) = first_word(rest);
        rest = others.trim_start();
        if flag == "--" {
            break;
        }
        flags.push(unquoted(flag));
    }
    (flags, rest)
}

/// The first word of `text`, which may contain quoted spaces, and what follows it. A quote without end ends with the
/// text.
fn first_word(text: &str) -> (&str, &str) {
    let (mut quote, mut characters) = (None, text.char_indices());
    while let Some((at, character)) = characters.next() {
        match (character, quote) {
            ('\\', _) => _ = characters.next(),
            ('"' | '\'', None) => quote = Some(character),
            _ if quote == Some(character) => quote = None,
            _ if quote.is_none() && character.is_whitespace() => return text.split_at(at),
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_in_quotes_and_escaped_spaces_separate_no_words() {
        let words = shell_words(r#"a "b c"d 'e\' \' f\ g "\" h""#).unwrap();
        assert_eq!(words, ["a", r#""b c"d"#, r"'e\'", r"\'", r"f\ g", r#""\" h""#]);
        assert_eq!(shell_words("it's <<EOF"), None);
    }

    #[test]
    fn quotes_and_escapes_are_removed() {
        for (word, text) in [
            (r#""debian:13-slim""#, "debian:13-slim"),
            (r#"a'b "c'"\d""#, r#"ab "c\d"#),
            (r#""\"\$x""#, r#""$x"#),
            (r"a\ b\", "a b"),
        ] {
            assert_eq!(unquoted(word), text, "{word}");
        }
    }

    #[test]
    fn flags_stand_before_the_first_other_word() {
        let (found, rest) = flags(r#" --from="a b" --chown=1 src --link d"#);
        assert_eq!(
            (found.as_slice(), rest),
            (&["--from=a b".into(), "--chown=1".into()][..], "src --link d")
        );
        assert_eq!(flags("-- --a").1, "--a");
    }
}
