//! A real browser: Debian's Chromium, driven by its driver over `WebDriver`.
//!
//! Source: <https://www.w3.org/TR/webdriver2/>.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::processes::ChildProcess;

/// Chromium in Debian and in Ubuntu.
const BINARIES: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];

/// What keeps Chromium from asking other hosts for anything. The first three are what it needs to run as root without a
/// screen.
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

/// One window of a browser with a profile of its own.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    _driver: ChildProcess,
    _profile: TempDir,
}

impl Browser {
    /// Opens an empty window.
    ///
    /// # Panics
    /// If Chromium or its driver is missing: `scripts/setup test` installs them.
    pub async fn open() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::null()).env("TMPDIR", profile.path());
        let mut driver = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start chromedriver: {error}; scripts/setup test installs it")
        });
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let driver = ChildProcess::new(driver);
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            let port = line.split("started successfully on port ").nth(1)?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let port = port.expect("chromedriver starts");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let folder = format!("--user-data-dir={}", profile.path().display());
        let arguments: Vec<_> = ARGUMENTS.into_iter().chain([&*folder]).collect();
        let mut binaries = BINARIES.into_iter().filter(|path| Path::new(path).exists());
        let binary = binaries.next().expect("scripts/setup test installs Chromium");
        let options = json!({ "binary": binary, "args": arguments });
        let capabilities =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let address = format!("http://127.0.0.1:{port}/session");
        let mut browser =
            Self { http, session: address.clone(), _driver: driver, _profile: profile };
        let session = browser.call(Method::POST, "", Some(capabilities)).await;
        browser.session = format!("{address}/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// Opens an address, and waits until its page is loaded.
    pub async fn go(&self, url: &str) {
        self.call(Method::POST, "/url", Some(json!({ "url": url }))).await;
    }

    /// The address of the page.
    pub async fn url(&self) -> String {
        self.call(Method::GET, "/url", None).await.as_str().unwrap().to_owned()
    }

    /// The text of the page, as people see it.
    pub async fn text(&self) -> String {
        let script = json!({ "script": "return document.body.innerText", "args": [] });
        let text = self.call(Method::POST, "/execute/sync", Some(script)).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The value of an expression of JavaScript in the page.
    pub async fn value_of(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return {expression}"), "args": [] });
        self.call(Method::POST, "/execute/sync", Some(script)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.http.request(method, format!("{}{path}", self.session));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{path}: {value:#}");
        value
    }
}
