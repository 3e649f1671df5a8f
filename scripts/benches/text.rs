//! Log lines like those of builds: about 100 bytes each, all different, dozens of one kind in a row.

use rand::RngExt as _;
use rand::rngs::StdRng;

const PACKAGES: [&str; 16] = [
    "tokio",
    "serde_derive",
    "openssl-sys",
    "regex-automata",
    "hyper-util",
    "rustls-pki-types",
    "futures-channel",
    "tracing-core",
    "proc-macro2",
    "unicode-ident",
    "icu_normalizer",
    "aho-corasick",
    "crossbeam-epoch",
    "zstd-safe",
    "tower-http",
    "webpki-roots",
];

const FOLDERS: [&str; 8] =
    ["net", "storage", "scheduler", "parser", "runtime", "codec", "metrics", "platform"];

const WORDS: [&str; 16] = [
    "request", "buffer", "stream", "session", "handler", "index", "cursor", "worker", "reader",
    "writer", "context", "message", "table", "frame", "token", "queue",
];

/// The tool that prints.
#[derive(Clone, Copy, Debug)]
enum Tool {
    Ninja,
    Npm,
    Apt,
    Cargo,
    Warnings,
}

const TOOLS: [Tool; 5] = [Tool::Ninja, Tool::Npm, Tool::Apt, Tool::Cargo, Tool::Warnings];

/// The output of a build.
#[derive(Debug)]
pub(crate) struct Output {
    rng: StdRng,
    tool: Tool,
    folder: &'static str,
    /// The number of printed lines, and of all lines.
    at: u32,
    of: u32,
    /// The lines until the next tool prints.
    left: u32,
}

impl Output {
    pub(crate) fn new(rng: StdRng) -> Self {
        Self { rng, tool: Tool::Ninja, folder: FOLDERS[0], at: 0, of: 0, left: 0 }
    }

    /// Returns the next line.
    pub(crate) fn line(&mut self) -> String {
        if self.left == 0 {
            self.next_tool();
        }
        self.left -= 1;
        self.at += 1;
        let Self { rng, tool, folder, at, of, .. } = self;
        let (word, other) = (WORDS[rng.random_range(0..16)], WORDS[rng.random_range(0..16)]);
        let package = PACKAGES[rng.random_range(0..16)];
        let (a, b, c) =
            (rng.random_range(0..12), rng.random_range(0..40), rng.random_range(0..200));
        match tool {
            Tool::Ninja => format!(
                "[{at:>3}/{of:>3}] /usr/bin/gcc -O2 -g -Wall -Iinclude -c src/{folder}/{word}_{other}.c -o build/{folder}/{word}_{other}.o"
            ),
            Tool::Npm => format!(
                "npm http fetch GET 200 https://registry.npmjs.org/{package}/-/{package}-{a}.{b}.{c}.tgz {c}ms (cache miss)"
            ),
            Tool::Apt => format!(
                "Get:{at} http://deb.debian.org/debian trixie/main amd64 lib{package}{a} amd64 {a}.{b}.{c}-{a} [{b}.{a} kB]"
            ),
            Tool::Cargo => format!(
                "   Compiling {package} v{a}.{b}.{c} (/usr/src/service/crates/{folder}/{word}-{other}) in {b}.{c:03}s"
            ),
            Tool::Warnings => format!(
                "src/{folder}/{word}_{other}.c:{c}:{b}: warning: unused variable '{word}_{a}' in function '{other}_{word}' [-Wunused-variable]"
            ),
        }
    }

    fn next_tool(&mut self) {
        let rng = &mut self.rng;
        self.tool = TOOLS[rng.random_range(0..TOOLS.len())];
        self.folder = FOLDERS[rng.random_range(0..FOLDERS.len())];
        self.of = rng.random_range(100..400);
        self.at = rng.random_range(0..self.of);
        self.left = rng.random_range(20..80);
    }
}
