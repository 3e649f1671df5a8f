//! Pointer files, which Git LFS commits in the place of large files.
//!
//! Source: Git LFS documentation, `spec.md`, "The Pointer".

/// A file that is larger is no pointer.
pub(super) const POINTER_BYTES_MAX: usize = 1024;

/// The address in a pointer's first line, also that of the first versions.
const VERSIONS: [&str; 3] = [
    "https://git-lfs.github.com/spec/v1",
    "https://hawser.github.com/spec/v1",
    "http://git-media.io/v/2",
];

/// What a pointer file refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pointer {
    /// The SHA-256 of the content, in hexadecimal digits.
    pub(super) id: String,
    /// In bytes.
    pub(super) size: u64,
}

impl Pointer {
    /// Reads a pointer file; `None` if `text` is the content itself.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        let version = lines.next()?.strip_prefix("version ")?;
        if !VERSIONS.contains(&version.trim_end()) {
            return None;
        }
        let (mut id, mut size) = (None, None);
        for (key, value) in lines.filter_map(|line| line.split_once(' ')) {
            match key {
                "oid" => id = value.trim_end().strip_prefix("sha256:"),
                "size" => size = value.trim_end().parse().ok(),
                _ => {}
            }
        }
        let id =
            id.filter(|id| id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        Some(Self { id: id.to_ascii_lowercase(), size: size? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_contents_are_told_apart() {
        let id = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let pointer = |text: &str| Pointer::parse(text.as_bytes());
        let text =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize 12345\n");
        assert_eq!(pointer(&text), Some(Pointer { id: id.to_owned(), size: 12345 }));
        assert!(pointer(&text.replace('\n', "\r\n")).is_some());
        for content in [
            "",
            "text",
            &text.replace("12345", "-1"),
            &text.replace("sha256:4d", "sha256:"),
            &text[..60],
        ] {
            assert_eq!(pointer(content), None, "{content}");
        }
    }
}
