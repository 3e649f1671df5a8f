//! Finds secrets that line breaks cut into pieces, as `fold` and `xxd -p` write them.

use std::collections::{BTreeSet, HashMap};

use super::LINE_END_BYTES_MIN;

/// Longer secrets are not looked for: too many ends of lines could belong to them.
const SECRET_BYTES_MAX: usize = 2_048;

/// The last characters of a line.
type LineEnd = [u8; LINE_END_BYTES_MIN];

pub(super) struct FoldedSecrets {
    secrets: Vec<Vec<u8>>,
    /// Where a secret has these characters: its index, and the number of characters up to their end.
    ends: HashMap<LineEnd, Vec<(usize, usize)>>,
}

/// What [`FoldedSecrets::find`] found in a text.
#[derive(Default)]
pub(super) struct Found {
    /// The start and the end of each secret.
    pub(super) whole: Vec<(usize, usize)>,
    /// Where the first secret starts that goes on behind the text.
    pub(super) begun: Option<usize>,
}

impl FoldedSecrets {
    pub(super) fn new(secrets: &BTreeSet<Vec<u8>>) -> Self {
        let is_usable = |secret: &&Vec<u8>| {
            secret.len() <= SECRET_BYTES_MAX && !secret.contains(&b'\n') && !secret.contains(&b'\r')
        };
        let secrets: Vec<Vec<u8>> = secrets.iter().filter(is_usable).cloned().collect();
        let mut ends: HashMap<LineEnd, Vec<_>> = HashMap::new();
        for (index, secret) in secrets.iter().enumerate() {
            for (start, window) in secret.windows(LINE_END_BYTES_MIN).enumerate() {
                let length = start + LINE_END_BYTES_MIN;
                // Without a rest there is nothing behind the line break.
                if let Ok(window) = window.try_into()
                    && length < secret.len()
                {
                    ends.entry(window).or_default().push((index, length));
                }
            }
        }
        Self { secrets, ends }
    }

    pub(super) fn find(&self, text: &[u8]) -> Found {
        let mut found = Found::default();
        let line_breaks = (0..text.len()).filter(|&at| text[at] == b'\n');
        // The line feed may follow.
        let half = text.ends_with(b"\r").then_some(text.len());
        for line_break in line_breaks.chain(half) {
            let line = without_line_end(&text[..line_break]);
            let Some(end) = line.last_chunk::<LINE_END_BYTES_MIN>() else { continue };
            for &(index, length) in self.ends.get(end).into_iter().flatten() {
                let (begin, rest) = self.secrets[index].split_at(length);
                let Some(start) = start_before(line, begin) else { continue };
                match end_after(text, text.len().min(line_break + 1), rest) {
                    End::At(end) => found.whole.push((start, end)),
                    End::Behind => found.begun = Some(found.begun.unwrap_or(start).min(start)),
                    End::None => {}
                }
            }
        }
        found
    }
}

/// Where `begin`, the beginning of a secret, starts at the end of `text`. Up to three of its characters may be missing:
/// they were at the end of an earlier line, which was not held back for so few.
fn start_before(text: &[u8], begin: &[u8]) -> Option<usize> {
    let mut before = text;
    for (index, byte) in begin.iter().enumerate().rev() {
        let line = if before.last() == Some(byte) {
            before
        } else {
            match before.strip_suffix(b"\n").map(without_line_end) {
                Some(line) if line.last() == Some(byte) => line,
                None if !before.is_empty() => return None,
                _ => return (index + 1 < LINE_END_BYTES_MIN).then_some(before.len()),
            }
        };
        before = &line[..line.len() - 1];
    }
    Some(before.len())
}

/// Where a secret ends.
enum End {
    At(usize),
    /// Behind the text, perhaps.
    Behind,
    /// The text goes on with something else.
    None,
}

/// Where `rest`, the rest of a secret, ends if `text` goes on with it at `at`, over line breaks or not.
fn end_after(text: &[u8], mut at: usize, rest: &[u8]) -> End {
    for (index, byte) in rest.iter().enumerate() {
        match &text[at..] {
            [] | b"\r" => return End::Behind,
            [b'\n', ..] if index > 0 => at += 1,
            [b'\r', b'\n', ..] if index > 0 => at += 2,
            _ => {}
        }
        match text.get(at) {
            None => return End::Behind,
            Some(found) if found == byte => at += 1,
            Some(_) => return End::None,
        }
    }
    End::At(at)
}

fn without_line_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}
