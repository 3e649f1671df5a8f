//! Masks secrets in everything that leaves the machine, before it is written anywhere.
//!
//! A secret is found raw, JSON-escaped, percent-encoded and base64-encoded (both alphabets, all three
//! alignments, also in lines of 16 characters or more). Each long line of a multi-line secret is found as well.
//!
//! [`MaskedStream`] works on bytes as they are read, so a secret may be cut between two reads. It holds back only
//! the end of its input that begins a secret, which is never longer than one secret. It needs no timer: a
//! complete line is held back only if it begins a multi-line secret. The end of the stream releases the rest.

use std::collections::BTreeSet;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// Replaces a secret.
pub(crate) const MASK: &str = "***";

/// Shorter credentials are not masked, because they occur in other text too often.
const CREDENTIAL_BYTES_MIN: usize = 4;

/// Shorter build arguments are not masked. Their names only suggest that they are secret: `DEBUG_KEYS=false` must not
/// mask `false`.
const BUILD_ARG_BYTES_MIN: usize = 6;

/// A line of a secret, or a part of an encoded form, is a pattern of its own from this length on.
const FRAGMENT_BYTES_MIN: usize = 8;

/// This many consecutive characters of a secret's base64 form are masked. They do not occur by chance.
const BASE64_WINDOW_BYTES: usize = 16;

/// A line that ends in fewer characters of a base64 form is not held back. So few characters occur by chance at the
/// ends of many lines, and each such line would wait for the next one.
const BASE64_LINE_END_BYTES_MIN: usize = 4;

/// A build argument whose name holds one of these words is secret.
const SECRET_WORDS: [&str; 9] =
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "KEY", "CREDENTIAL", "AUTH", "PRIVATE"];

/// Whether a build argument's name suggests that its value is secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Collects the secrets of a [`Masker`].
#[derive(Default)]
pub struct MaskerBuilder(BTreeSet<Vec<u8>>);

impl MaskerBuilder {
    /// Adds a password or token.
    pub fn credential(&mut self, secret: &str) {
        if secret.trim().len() >= CREDENTIAL_BYTES_MIN {
            self.add(secret.trim());
        }
    }

    /// Adds a build argument's value if the argument's name suggests that it is secret.
    pub fn build_arg(&mut self, name: &str, value: &str) {
        if is_secret_name(name) && value.trim().len() >= BUILD_ARG_BYTES_MIN {
            self.add(value.trim());
        }
    }

    /// Creates the masker. Without secrets it copies its input.
    ///
    /// # Errors
    /// If the secrets are too large for an automaton: many megabytes.
    pub fn build(self) -> Result<Masker, aho_corasick::BuildError> {
        Masker::new(self.0.into_iter().collect())
    }

    fn add(&mut self, secret: &str) {
        self.0.insert(secret.into());
        self.0.insert(secret.replace("\r\n", "\n").into());
        self.0.insert(secret.replace("\r\n", "\n").replace('\n', "\r\n").into());
        self.0.extend(escaped_forms(secret).into_iter().map(Vec::from));
        // The header and the footer of a PEM file are not secret.
        let lines = secret.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
        let long = lines.filter(|line| line.len() >= FRAGMENT_BYTES_MIN);
        self.0.extend(long.map(|line| line.as_bytes().to_vec()));
        for form in (0..3).flat_map(|shift| base64_forms(secret.as_bytes(), shift)) {
            // `base64` breaks its lines, at a position that depends on the text before the secret.
            self.0.extend(form.windows(BASE64_WINDOW_BYTES).map(<[u8]>::to_vec));
            self.0.extend(broken_forms(&form));
            self.0.insert(form);
        }
    }
}

/// `secret` in the forms that it has in JSON strings and URLs.
fn escaped_forms(secret: &str) -> Vec<String> {
    let mut forms = Vec::new();
    if let Ok(json) = serde_json::to_string(secret) {
        forms.push(json[1..json.len() - 1].to_owned());
    }
    let percent = |upper: bool| {
        let escape = |byte: u8| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        };
        secret.bytes().map(escape).collect::<String>()
    };
    forms.extend([percent(true), percent(false), percent(true).replace("%20", "+")]);
    forms
}

/// The characters that `secret` determines in a base64 text in which it begins `shift` bytes after a multiple of
/// three. The characters that it shares with neighbouring bytes hold at most four of its bits at each end.
fn base64_forms(secret: &[u8], shift: usize) -> Vec<Vec<u8>> {
    let mut bytes = vec![0; shift];
    bytes.extend_from_slice(secret);
    let first = (shift * 8).div_ceil(6);
    let last = bytes.len() * 8 / 6;
    [STANDARD, URL_SAFE]
        .iter()
        .map(|engine| engine.encode(&bytes).as_bytes()[first..last].to_vec())
        .filter(|form| form.len() >= FRAGMENT_BYTES_MIN.min(secret.len()))
        .collect()
}

/// The forms that a line end within the first or last characters of a base64 form produces. At a line end elsewhere,
/// both sides are long enough for a window.
fn broken_forms(form: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let window = BASE64_WINDOW_BYTES;
    let breaks = (1..form.len()).filter(move |&at| at < window || form.len() - at < window);
    breaks.filter_map(move |at| {
        let before = &form[at.saturating_sub(window)..at];
        let after = &form[at..form.len().min(at + window)];
        if before.len() >= BASE64_LINE_END_BYTES_MIN {
            Some([before, b"\n", after].concat())
        } else {
            // On its own it must be long enough.
            (after.len() >= FRAGMENT_BYTES_MIN).then(|| after.to_vec())
        }
    })
}

/// Masks the secrets of a job. Cheap to clone.
#[derive(Clone)]
pub struct Masker(Option<Arc<Patterns>>);

struct Patterns {
    automaton: AhoCorasick,
    /// Sorted, so that one search finds out whether a text begins one of them.
    sorted: Vec<Vec<u8>>,
    longest_bytes: usize,
    /// For each byte, whether a pattern begins with it.
    first_bytes: [bool; 256],
}

impl Masker {
    fn new(sorted: Vec<Vec<u8>>) -> Result<Self, aho_corasick::BuildError> {
        if sorted.is_empty() {
            return Ok(Self(None));
        }
        // Only the standard kind finds overlapping matches. Without them, the end of a secret that begins inside
        // another one would stay.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&sorted)?;
        let longest_bytes = sorted.iter().map(Vec::len).max().unwrap_or(0);
        let mut first_bytes = [false; 256];
        for pattern in &sorted {
            first_bytes[usize::from(pattern[0])] = true;
        }
        Ok(Self(Some(Arc::new(Patterns { automaton, sorted, longest_bytes, first_bytes }))))
    }

    /// `text` without secrets.
    pub fn mask(&self, text: &str) -> String {
        let mut masked = Vec::with_capacity(text.len());
        let mut stream = self.stream();
        stream.push(text.as_bytes(), &mut masked);
        stream.finish(&mut masked);
        String::from_utf8_lossy(&masked).into_owned()
    }

    /// Masks one stream of bytes.
    pub fn stream(&self) -> MaskedStream {
        MaskedStream { patterns: self.0.clone(), held: Vec::new(), covered: 0 }
    }
}

/// The state of one stream that is masked.
pub struct MaskedStream {
    patterns: Option<Arc<Patterns>>,
    /// The end of the input that may begin a secret; shorter than the longest secret.
    held: Vec<u8>,
    /// How many bytes of `held` belong to a secret whose mask is written already.
    covered: usize,
}

impl MaskedStream {
    /// Masks `input` and appends to `output` the part that cannot begin a secret.
    pub fn push(&mut self, input: &[u8], output: &mut Vec<u8>) {
        let Some(patterns) = self.patterns.clone() else {
            output.extend_from_slice(input);
            return;
        };
        if self.held.is_empty() {
            let hold = patterns.hold_position(input);
            self.covered = patterns.write(input, hold, 0, output);
            self.held.extend_from_slice(&input[hold..]);
        } else {
            self.held.extend_from_slice(input);
            let hold = patterns.hold_position(&self.held);
            self.covered = patterns.write(&self.held, hold, self.covered, output);
            self.held.drain(..hold);
        }
    }

    /// Appends the part that was held back to `output`: the stream has ended.
    pub fn finish(&mut self, output: &mut Vec<u8>) {
        if let Some(patterns) = &self.patterns {
            // The held beginning of a long secret may hold a short secret.
            patterns.write(&self.held, self.held.len(), self.covered, output);
        }
        self.held.clear();
        self.covered = 0;
    }
}

impl Patterns {
    /// The start of the longest end of `text` that begins a secret without being a whole one.
    fn hold_position(&self, text: &[u8]) -> usize {
        let earliest = text.len().saturating_sub(self.longest_bytes.saturating_sub(1));
        (earliest..text.len())
            .find(|&start| {
                self.first_bytes[usize::from(text[start])] && self.begins_secret(&text[start..])
            })
            .unwrap_or(text.len())
    }

    fn begins_secret(&self, end: &[u8]) -> bool {
        let next = self.sorted.partition_point(|pattern| pattern.as_slice() <= end);
        self.sorted.get(next).is_some_and(|pattern| pattern.starts_with(end))
    }

    /// Writes `text[..hold]` masked; its first `covered` bytes have their mask already. Returns how
    /// many bytes from `hold` on belong to a secret whose mask is written.
    fn write(&self, text: &[u8], hold: usize, covered: usize, output: &mut Vec<u8>) -> usize {
        let mut written = covered;
        for (start, end) in self.secrets(text, covered) {
            if start >= hold {
                break;
            }
            if start >= written && !(start == 0 && covered > 0) {
                output.extend_from_slice(&text[written..start]);
                output.extend_from_slice(MASK.as_bytes());
            }
            written = written.max(end);
        }
        if written < hold {
            output.extend_from_slice(&text[written..hold]);
        }
        written.saturating_sub(hold)
    }

    /// The secret parts of `text`, in order, with overlapping ones joined.
    fn secrets(&self, text: &[u8], covered: usize) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        let matches = self.automaton.find_overlapping_iter(text);
        let mut all: Vec<_> = matches.map(|found| (found.start(), found.end())).collect();
        if covered > 0 {
            all.push((0, covered));
        }
        all.sort_unstable();
        for (start, end) in all {
            match found.last_mut() {
                Some((_, last_end)) if start < *last_end => *last_end = end.max(*last_end),
                _ => found.push((start, end)),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masker(secrets: &[&str]) -> Masker {
        let mut builder = MaskerBuilder::default();
        for secret in secrets {
            builder.credential(secret);
        }
        builder.build().unwrap()
    }

    fn in_pieces(masker: &Masker, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(text.len());
        let (mut stream, mut output, mut from) = (masker.stream(), Vec::new(), 0);
        for cut in cuts {
            stream.push(&text[from..cut], &mut output);
            from = cut;
        }
        stream.finish(&mut output);
        output
    }

    #[test]
    fn forms_of_a_secret_are_masked() {
        let secret = "p@ss w\"rd/ü+1234";
        let masker = masker(&[secret]);
        let json = serde_json::to_string(secret).unwrap();
        for text in
            [secret, &json, "p%40ss%20w%22rd%2F%C3%BC%2B1234", "p%40ss+w%22rd%2F%C3%BC%2B1234"]
        {
            assert_eq!(masker.mask(&format!("a {text} b")).replace('"', ""), "a *** b");
        }
        for before in ["", "x", "xy", "x-access-token:"] {
            for engine in [STANDARD, URL_SAFE] {
                let text = engine.encode(format!("{before}{secret}!"));
                let output = masker.mask(&text);
                assert!(output.contains(MASK) && output.len() < before.len() * 2 + 14, "{output}");
            }
        }
    }

    #[test]
    fn base64_in_lines_is_masked_wherever_a_line_ends() {
        for length in [8, 12, 20, 30, 40, 60, 90] {
            let secret: String = (0..length).map(|byte| char::from(33 + byte)).collect();
            let masker = masker(&[&secret]);
            for (width, before) in [64, 76].into_iter().flat_map(|w| (0..w).map(move |b| (w, b))) {
                let text = format!("{}{secret}...", "~".repeat(before));
                let encoded = STANDARD.encode(text);
                let lines: Vec<_> = encoded.as_bytes().chunks(width).collect();
                let output = masker.mask(std::str::from_utf8(&lines.join(&b'\n')).unwrap());
                let forms = base64_forms(secret.as_bytes(), before % 3);
                for piece in forms[0].windows(FRAGMENT_BYTES_MIN) {
                    let piece = std::str::from_utf8(piece).unwrap();
                    assert!(!output.contains(piece), "{length} {width} {before}: {output}");
                }
            }
        }
    }

    #[test]
    fn a_line_is_not_held_back_for_the_few_characters_at_its_end() {
        let secret: String = (0..40_u8).map(|byte| char::from(33 + byte)).collect();
        let (masker, mut output) = (masker(&[&secret]), Vec::new());
        let form = STANDARD.encode(&secret);
        let line = format!("#5 0.1 {}\n", &form[..3]);
        masker.stream().push(line.as_bytes(), &mut output);
        assert_eq!(output, line.as_bytes());
    }

    #[test]
    fn lines_of_a_secret_are_masked_one_by_one() {
        let masker = masker(&["-----BEGIN KEY-----\nMIIabcdefgh\nshort\n-----END KEY-----"]);
        assert_eq!(masker.mask("#5 0.1 MIIabcdefgh"), "#5 0.1 ***");
        assert_eq!(masker.mask("a short text"), "a short text");
        let whole = "x\n-----BEGIN KEY-----\r\nMIIabcdefgh\r\nshort\r\n-----END KEY-----\r\ny";
        assert_eq!(masker.mask(whole), "x\n***\r\ny");
    }

    #[test]
    fn only_the_end_that_may_begin_a_secret_is_held() {
        let (masker, mut output) = (masker(&["hunter22"]), Vec::new());
        let mut stream = masker.stream();
        stream.push(b"a whole line\nthe hunt", &mut output);
        assert_eq!(output, b"a whole line\nthe ");
        stream.push(b" is on\n", &mut output);
        assert_eq!(output, b"a whole line\nthe hunt is on\n");
    }

    #[test]
    fn short_values_and_harmless_names_stay() {
        let mut secrets = MaskerBuilder::default();
        secrets.credential("1");
        secrets.build_arg("USE_KEYS", "false");
        secrets.build_arg("NODE_ENV", "production");
        secrets.build_arg("npm_token", "abcdef");
        let masker = secrets.build().unwrap();
        assert_eq!(masker.mask("1 false production abcdef"), "1 false production ***");
    }

    #[test]
    fn a_secret_that_begins_a_longer_one_is_masked_at_the_end() {
        assert_eq!(masker(&["abcdef", "abcdefghij"]).mask("x abcdef"), "x ***");
        assert_eq!(masker(&["abcdef", "xyabcdefgh"]).mask("xyabcdef"), "xy***");
    }

    #[test]
    fn overlapping_secrets_leave_no_rest() {
        let masker = masker(&["abcdef", "defghi", "aaaa"]);
        assert_eq!(masker.mask("-abcdefghi-"), "-***-");
        let output = in_pieces(&masker, b"xaaaaaaaaaaaaaaaay", &[5, 9, 12]);
        assert_eq!(output, b"x***y");
    }

    proptest! {
        #[test]
        fn a_secret_cut_anywhere_never_leaks(
            secret in "[a-c]{4,12}",
            other in "[a-c\n]{5,9}",
            more in "[a-c]{1,5}",
            text in "[a-d\n]{0,40}",
            at in any::<prop::sample::Index>(),
            cuts in prop::collection::vec(0..200_usize, 0..12),
        ) {
            prop_assume!(other.trim().len() >= 4);
            let masker = masker(&[&secret, &other, &format!("{secret}{more}")]);
            let text = {
                let at = at.index(text.len() + 1);
                format!("{}{secret}{}", &text[..at], &text[at..])
            };
            let output = String::from_utf8(in_pieces(&masker, text.as_bytes(), &cuts)).unwrap();
            prop_assert!(!output.contains(&secret), "{output:?}");
            prop_assert!(!output.contains(other.trim()), "{output:?}");
            prop_assert_eq!(output, masker.mask(&text));
        }

        #[test]
        fn text_without_a_secret_is_unchanged(
            text in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0..200_usize, 0..12),
        ) {
            let masker = masker(&["\u{1}correct horse battery staple"]);
            prop_assert_eq!(in_pieces(&masker, &text, &cuts), text);
        }
    }
}
