//! The forms in which programs print a secret.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::{BASE64_WINDOW_BYTES, FRAGMENT_BYTES_MIN, LINE_END_BYTES_MIN};

/// The characters beside letters and digits that do not become `%XX`: everywhere (RFC 3986), in JavaScript, in Python,
/// in the user information of Go and of RFC 3986, in JavaScript's whole URLs, and in forms.
const UNESCAPED_IN_URLS: [&str; 7] = [
    "-._~",
    "-._~!'()*",
    "-._~/",
    "-._~$&+,;=",
    "-._~!$&'()*+,;=:",
    "-._~!'()*;/?:@&=+$,#",
    "-._*",
];

/// `secret` in the forms that it has in JSON strings, in URLs, and where it is quoted for a shell.
pub(super) fn escaped_forms(secret: &str) -> Vec<String> {
    let mut forms = json_forms(secret);
    forms.extend(shell_forms(secret));
    for unescaped in UNESCAPED_IN_URLS {
        let (upper, lower) = (percent(secret, unescaped, true), percent(secret, unescaped, false));
        forms.extend([upper.replace("%20", "+"), lower.replace("%20", "+"), upper, lower]);
    }
    forms
}

fn percent(secret: &str, unescaped: &str, is_upper: bool) -> String {
    let escape = |byte: u8| match char::from(byte) {
        char if byte.is_ascii_alphanumeric() || unescaped.contains(char) => char.to_string(),
        _ if is_upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    };
    secret.bytes().map(escape).collect()
}

/// The text whose percent-encoded form is `text`. A `%` without two digits stays.
pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As serde and JavaScript write it, as Go and Python do, and with escaped slashes.
fn json_forms(secret: &str) -> Vec<String> {
    let Ok(json) = serde_json::to_string(secret) else { return Vec::new() };
    let json = json[1..json.len() - 1].to_owned();
    let escaped = |is_escaped: &dyn Fn(char) -> bool| {
        let mut text = String::new();
        for char in json.chars() {
            if is_escaped(char) {
                let units = char.encode_utf16(&mut [0; 2]).to_vec();
                text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            } else {
                text.push(char);
            }
        }
        text
    };
    let go = escaped(&|char| matches!(char, '<' | '>' | '&'));
    let python = escaped(&|char| !char.is_ascii());
    vec![go, python, json.replace('/', "\\/"), json]
}

/// Between single quotes (two ways), as `printf %q` prints it, and between double quotes.
fn shell_forms(secret: &str) -> [String; 4] {
    let backslashes = |is_special: &dyn Fn(char) -> bool| {
        let escape = |char| if is_special(char) { format!("\\{char}") } else { char.to_string() };
        secret.chars().map(escape).collect::<String>()
    };
    let is_special = |char: char| char.is_ascii_punctuation() && !"%+-./:=@_".contains(char);
    [
        secret.replace('\'', r"'\''"),
        secret.replace('\'', r#"'"'"'"#),
        backslashes(&|char| char == ' ' || is_special(char)),
        backslashes(&|char| r#""\$`"#.contains(char)),
    ]
}

/// The bytes of `secret` as hexadecimal digits, in upper and lower case.
pub(super) fn hex_forms(secret: &str) -> [Vec<u8>; 2] {
    let digits =
        |byte: u8| [byte >> 4, byte & 15].map(|half| b"0123456789abcdef"[usize::from(half)]);
    let lower: Vec<u8> = secret.bytes().flat_map(digits).collect();
    [lower.to_ascii_uppercase(), lower]
}

/// The characters that `secret` determines in a base64 text in which it begins `shift` bytes after a multiple of
/// three. The characters that it shares with neighbouring bytes hold at most four of its bits at each end.
pub(super) fn base64_forms(secret: &[u8], shift: usize) -> Vec<Vec<u8>> {
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
pub(super) fn broken_forms(form: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let window = BASE64_WINDOW_BYTES;
    let breaks = (1..form.len()).filter(move |&at| at < window || form.len() - at < window);
    breaks.filter_map(move |at| {
        let before = &form[at.saturating_sub(window)..at];
        let after = &form[at..form.len().min(at + window)];
        if before.len() >= LINE_END_BYTES_MIN {
            Some([before, b"\n", after].concat())
        } else {
            // On its own it must be long enough.
            (after.len() >= FRAGMENT_BYTES_MIN).then(|| after.to_vec())
        }
    })
}
