//! The attribute `working-tree-encoding`: text that Git stores as UTF-8 and checks out in another encoding.
//!
//! Source: Git documentation, `gitattributes`, "working-tree-encoding".

use encoding_rs::Encoding;

/// An encoding of files in a working tree.
#[derive(Clone, Copy, Debug)]
pub(super) enum FileEncoding {
    Utf8,
    Utf16 { order: ByteOrder, with_mark: bool },
    Utf32 { order: ByteOrder, with_mark: bool },
    Latin1,
    Ascii,
    Other(&'static Encoding),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ByteOrder {
    Big,
    Little,
}

impl FileEncoding {
    /// Finds an encoding by the name that Git gives to iconv.
    pub(super) fn find(name: &str) -> Option<Self> {
        use ByteOrder::{Big, Little};
        let mut plain = name.to_ascii_uppercase();
        plain.retain(|letter| !matches!(letter, '-' | '_' | ' '));
        let utf16 = |order, with_mark| Self::Utf16 { order, with_mark };
        let utf32 = |order, with_mark| Self::Utf32 { order, with_mark };
        Some(match plain.as_str() {
            "UTF8" => Self::Utf8,
            // As Git on Linux: little-endian, with a byte-order mark.
            "UTF16" | "UTF16LEBOM" => utf16(Little, true),
            "UTF16BEBOM" => utf16(Big, true),
            "UTF16LE" => utf16(Little, false),
            "UTF16BE" => utf16(Big, false),
            "UTF32" | "UTF32LEBOM" => utf32(Little, true),
            "UTF32BEBOM" => utf32(Big, true),
            "UTF32LE" => utf32(Little, false),
            "UTF32BE" => utf32(Big, false),
            // On the web these names mean Windows-1252.
            "ISO88591" | "LATIN1" | "L1" => Self::Latin1,
            "ASCII" | "USASCII" | "ANSIX3.41968" => Self::Ascii,
            _ => {
                let known = Encoding::for_label(name.as_bytes())
                    .or_else(|| Encoding::for_label(windows_label(&plain)?.as_bytes()))?;
                // Others are only for reading.
                (known.output_encoding() == known).then_some(Self::Other(known))?
            }
        })
    }

    /// `text` in this encoding; `None` if it has a character that the encoding lacks.
    pub(super) fn encode(self, text: &str) -> Option<Vec<u8>> {
        let mark = |with_mark: bool| with_mark.then_some('\u{feff}');
        match self {
            Self::Utf8 => Some(text.as_bytes().to_vec()),
            Self::Utf16 { order, with_mark } => {
                let characters = mark(with_mark).into_iter().chain(text.chars());
                let units =
                    characters.flat_map(|character| character.encode_utf16(&mut [0; 2]).to_vec());
                Some(match order {
                    ByteOrder::Big => units.flat_map(u16::to_be_bytes).collect(),
                    ByteOrder::Little => units.flat_map(u16::to_le_bytes).collect(),
                })
            }
            Self::Utf32 { order, with_mark } => {
                let characters = mark(with_mark).into_iter().chain(text.chars());
                let units = characters.map(u32::from);
                Some(match order {
                    ByteOrder::Big => units.flat_map(u32::to_be_bytes).collect(),
                    ByteOrder::Little => units.flat_map(u32::to_le_bytes).collect(),
                })
            }
            Self::Latin1 => text.chars().map(|letter| u8::try_from(letter).ok()).collect(),
            Self::Ascii => text.is_ascii().then(|| text.as_bytes().to_vec()),
            Self::Other(encoding) => {
                let (bytes, _, has_unmappable) = encoding.encode(text);
                (!has_unmappable).then(|| bytes.into_owned())
            }
        }
    }
}

/// `windows-1251` of `CP1251`.
fn windows_label(plain: &str) -> Option<String> {
    let number = plain.strip_prefix("CP").or_else(|| plain.strip_prefix("WINDOWS"))?;
    Some(match number {
        "866" => "ibm866".to_owned(),
        "932" => "shift_jis".to_owned(),
        "936" => "gbk".to_owned(),
        "949" => "euc-kr".to_owned(),
        "950" => "big5".to_owned(),
        number => format!("windows-{number}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(name: &str, text: &str) -> Option<Vec<u8>> {
        FileEncoding::find(name).unwrap().encode(text)
    }

    /// The bytes are those of Git 2.47 with the C library of Debian.
    #[test]
    fn text_is_encoded_as_git_does() {
        let cases: [(&str, &[u8]); 12] = [
            ("UTF-16", &[0xff, 0xfe, 0xe9, 0, 0x0a, 0]),
            ("utf16", &[0xff, 0xfe, 0xe9, 0, 0x0a, 0]),
            ("UTF-16LE-BOM", &[0xff, 0xfe, 0xe9, 0, 0x0a, 0]),
            ("UTF-16BE-BOM", &[0xfe, 0xff, 0, 0xe9, 0, 0x0a]),
            ("UTF-16LE", &[0xe9, 0, 0x0a, 0]),
            ("UTF-16BE", &[0, 0xe9, 0, 0x0a]),
            ("UTF-32", &[0xff, 0xfe, 0, 0, 0xe9, 0, 0, 0, 0x0a, 0, 0, 0]),
            ("latin1", &[0xe9, 0x0a]),
            ("ISO-8859-1", &[0xe9, 0x0a]),
            ("CP1252", &[0xe9, 0x0a]),
            ("windows-1252", &[0xe9, 0x0a]),
            ("UTF-8", "é\n".as_bytes()),
        ];
        for (name, bytes) in cases {
            assert_eq!(encoded(name, "é\n").as_deref(), Some(bytes), "{name}");
        }
        assert_eq!(encoded("SHIFT-JIS", "あ"), Some(vec![0x82, 0xa0]));
        assert_eq!(encoded("UTF-16LE", "😀"), Some(vec![0x3d, 0xd8, 0x00, 0xde]));
    }

    #[test]
    fn unknown_encodings_and_characters_are_no_text() {
        assert!(FileEncoding::find("foo").is_none());
        assert!(encoded("latin1", "€").is_none() && encoded("ascii", "é").is_none());
        assert!(encoded("KOI8-R", "€").is_none());
    }
}
