//! Masks secrets in all texts that leave the machine, before they are written anywhere. Artifacts of tests are files and stay as
//! they are.
//!
//! A secret is found raw, in upper and lower case, in JSON strings, in URLs, quoted for a shell, in hexadecimal digits,
//! and base64-encoded (both alphabets, all three alignments, also in lines of 16 characters or more). Raw and
//! hexadecimal ones are also found where lines of 4 characters or more cut them. Each long line of a multi-line secret is
//! found as well, and the password of a URL.
//!
//! [`MaskedStream`] works on bytes as they are read, so a secret may be cut between two reads. It holds back only
//! the end of its input that begins a secret, which is never longer than one secret. It needs no timer: a
//! complete line is held back only if it begins a multi-line secret. The end of the stream releases the rest.

mod folded;
mod forms;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use stagely_protocol::text::readable;
use url::Url;

use self::folded::{FoldedSecrets, Found};
use self::forms::{base64_forms, broken_forms, escaped_forms, hex_forms, percent_decoded};

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

/// A line that ends in fewer characters of a secret is not held back. So few characters occur by chance at the ends of
/// many lines, and each such line would wait for the next one.
const LINE_END_BYTES_MIN: usize = 4;

/// A build argument whose name holds one of these words is secret.
const SECRET_WORDS: [&str; 9] =
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "KEY", "CREDENTIAL", "AUTH", "PRIVATE"];

/// Whether a build argument's name suggests that its value is secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The password of `url`, as it has it and as a program uses it.
fn passwords(url: &Url) -> Option<[String; 2]> {
    url.password().map(|password| [password.to_owned(), percent_decoded(password)])
}

/// Collects the secrets of a [`Masker`].
#[derive(Default)]
pub struct MaskerBuilder {
    patterns: BTreeSet<Vec<u8>>,
    /// The forms that are also found where lines cut them.
    foldable: BTreeSet<Vec<u8>>,
}

impl MaskerBuilder {
    /// Adds a password or token.
    pub fn credential(&mut self, secret: &str) {
        if secret.trim().len() >= CREDENTIAL_BYTES_MIN {
            self.add(secret.trim());
        }
    }

    /// Adds the password of a proxy's address.
    pub fn proxy(&mut self, address: &str) {
        let url = if address.contains("://") { address } else { &format!("http://{address}") };
        if let Some(passwords) = Url::parse(url).ok().as_ref().and_then(passwords) {
            for password in &passwords {
                self.credential(password);
            }
        }
    }

    /// Adds a build argument's value if the argument's name suggests that it is secret, and the password of a URL in any
    /// argument. A password that is also the user's name is none that anyone keeps: `postgres:postgres@db` must not mask
    /// `FROM postgres`.
    pub fn build_arg(&mut self, name: &str, value: &str) {
        let value = value.trim();
        if is_secret_name(name) && value.len() >= BUILD_ARG_BYTES_MIN {
            self.add(value);
        }
        if let Ok(url) = Url::parse(value)
            && url.password() != Some(url.username())
            && let Some(passwords) = passwords(&url)
        {
            for password in passwords.iter().filter(|text| text.len() >= BUILD_ARG_BYTES_MIN) {
                self.add(password);
            }
        }
    }

    /// Creates the masker. Without secrets it copies its input.
    ///
    /// # Errors
    /// If the secrets are too large for an automaton: many megabytes.
    pub fn build(self) -> Result<Masker, aho_corasick::BuildError> {
        Masker::new(self.patterns.into_iter().collect(), &self.foldable)
    }

    fn add(&mut self, secret: &str) {
        let patterns = &mut self.patterns;
        patterns.insert(secret.into());
        patterns.insert(secret.replace("\r\n", "\n").into());
        patterns.insert(secret.replace("\r\n", "\n").replace('\n', "\r\n").into());
        patterns.extend(escaped_forms(secret).into_iter().map(Vec::from));
        patterns.extend(hex_forms(secret));
        if secret.len() >= FRAGMENT_BYTES_MIN {
            patterns.extend([secret.to_uppercase().into(), secret.to_lowercase().into()]);
        }
        for form in [secret.as_bytes().to_vec()].into_iter().chain(hex_forms(secret)) {
            // The line before may end in characters that are too few to be held back.
            let ends = (1..LINE_END_BYTES_MIN).filter_map(|cut| form.get(cut..));
            let ends = ends.filter(|end| end.len() >= FRAGMENT_BYTES_MIN);
            patterns.extend(ends.map(<[u8]>::to_vec));
            self.foldable.insert(form);
        }
        // The header and the footer of a PEM file are not secret.
        let lines = secret.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
        let long = lines.filter(|line| line.len() >= FRAGMENT_BYTES_MIN);
        patterns.extend(long.map(|line| line.as_bytes().to_vec()));
        for form in (0..3).flat_map(|shift| base64_forms(secret.as_bytes(), shift)) {
            // `base64` breaks its lines, at a position that depends on the text before the secret.
            patterns.extend(form.windows(BASE64_WINDOW_BYTES).map(<[u8]>::to_vec));
            patterns.extend(broken_forms(&form));
            patterns.insert(form);
        }
    }
}

/// Masks the secrets of a job. Cheap to clone.
#[derive(Clone)]
pub struct Masker(Option<Arc<Patterns>>);

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masker")
    }
}

struct Patterns {
    automaton: AhoCorasick,
    folded: FoldedSecrets,
    /// Sorted, so that one search finds out whether a text begins one of them.
    sorted: Vec<Vec<u8>>,
    longest_bytes: usize,
    /// For each byte, whether a pattern begins with it.
    first_bytes: [bool; 256],
    /// For each two bytes, whether a pattern begins with them.
    first_pairs: Vec<bool>,
}

impl Masker {
    fn new(
        sorted: Vec<Vec<u8>>,
        foldable: &BTreeSet<Vec<u8>>,
    ) -> Result<Self, aho_corasick::BuildError> {
        if sorted.is_empty() {
            return Ok(Self(None));
        }
        // Only the standard kind finds overlapping matches. Without them, the end of a secret that begins inside
        // another one would stay.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&sorted)?;
        let longest_bytes = sorted.iter().map(Vec::len).max().unwrap_or(0);
        let mut first_bytes = [false; 256];
        let mut first_pairs = vec![false; 1 << 16];
        for pattern in &sorted {
            first_bytes[usize::from(pattern[0])] = true;
            if let [first, second, ..] = pattern[..] {
                first_pairs[pair(first, second)] = true;
            }
        }
        let folded = FoldedSecrets::new(foldable);
        let patterns =
            Patterns { automaton, folded, sorted, longest_bytes, first_bytes, first_pairs };
        Ok(Self(Some(Arc::new(patterns))))
    }

    /// `text` without secrets, also as it looks without colours.
    pub fn mask(&self, text: &str) -> String {
        let masked = self.mask_raw(text);
        let lines = masked.split('\n').map(|line| self.mask_shown(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A line without the secrets that control sequences cut: those who read it without a terminal would see them whole. Such a
    /// line loses its colours.
    pub(crate) fn mask_shown<'a>(&self, line: &'a str) -> Cow<'a, str> {
        let is_plain = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
        if self.0.is_none() || line.bytes().all(is_plain) {
            return line.into();
        }
        let shown = readable(line);
        let masked = self.mask_raw(&shown);
        if masked == shown { line.into() } else { masked.into() }
    }

    fn mask_raw(&self, text: &str) -> String {
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
            let (folded, hold) = patterns.find_folded(input);
            self.covered = patterns.write(input, hold, 0, folded, output);
            self.held.extend_from_slice(&input[hold..]);
        } else {
            self.held.extend_from_slice(input);
            let (folded, hold) = patterns.find_folded(&self.held);
            self.covered = patterns.write(&self.held, hold, self.covered, folded, output);
            self.held.drain(..hold);
        }
    }

    /// Appends the part that was held back to `output`: the stream has ended.
    pub fn finish(&mut self, output: &mut Vec<u8>) {
        if let Some(patterns) = &self.patterns {
            // The held beginning of a long secret may hold a short secret.
            let (folded, _) = patterns.find_folded(&self.held);
            patterns.write(&self.held, self.held.len(), self.covered, folded, output);
        }
        self.held.clear();
        self.covered = 0;
    }
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

impl Patterns {
    /// The secrets in `text` that line breaks cut, and the start of the end of `text` that has to be held back.
    fn find_folded(&self, text: &[u8]) -> (Vec<(usize, usize)>, usize) {
        let Found { whole, begun } = self.folded.find(text);
        let hold = self.hold_position(text);
        (whole, begun.map_or(hold, |begun| hold.min(begun)))
    }

    /// The start of the longest end of `text` that begins a secret without being a whole one.
    fn hold_position(&self, text: &[u8]) -> usize {
        let earliest = text.len().saturating_sub(self.longest_bytes.saturating_sub(1));
        (earliest..text.len())
            .find(|&start| self.may_begin(&text[start..]) && self.begins_secret(&text[start..]))
            .unwrap_or(text.len())
    }

    /// A quick check, which most ends of a text do not pass.
    fn may_begin(&self, end: &[u8]) -> bool {
        match *end {
            [first, second, ..] => self.first_pairs[pair(first, second)],
            [first] => self.first_bytes[usize::from(first)],
            [] => false,
        }
    }

    fn begins_secret(&self, end: &[u8]) -> bool {
        let next = self.sorted.partition_point(|pattern| pattern.as_slice() <= end);
        self.sorted.get(next).is_some_and(|pattern| pattern.starts_with(end))
    }

    /// Writes `text[..hold]` masked; its first `covered` bytes have their mask already. Returns how
    /// many bytes from `hold` on belong to a secret whose mask is written.
    fn write(
        &self,
        text: &[u8],
        hold: usize,
        covered: usize,
        folded: Vec<(usize, usize)>,
        output: &mut Vec<u8>,
    ) -> usize {
        let mut written = covered;
        for (start, end) in self.secrets(text, covered, folded) {
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
    fn secrets(
        &self,
        text: &[u8],
        covered: usize,
        folded: Vec<(usize, usize)>,
    ) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        let matches = self.automaton.find_overlapping_iter(text);
        let mut all = folded;
        all.extend(matches.map(|found| (found.start(), found.end())));
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
mod tests;
