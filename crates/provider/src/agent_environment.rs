//! What agents of launched machines need in a company's network: proxies and other variables, and certificate authorities.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::Certificate;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use thiserror::Error;
use url::Url;

use crate::settings::{SettingError, is_this_host};

/// The name of the setting in errors.
const KEY: &str = "agents.environment";

/// Variables that may also be written in lower case. Programs differ in which case they read.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
const NO_PROXY: &str = "NO_PROXY";
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Variables of the environment of agents, and of the Docker engines of machines that core launches. A proxy's address may
/// contain a password.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct AgentEnvironment(BTreeMap<String, SecretString>);

impl fmt::Debug for AgentEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl PartialEq for AgentEnvironment {
    fn eq(&self, other: &Self) -> bool {
        self.variables().eq(other.variables())
    }
}

impl Eq for AgentEnvironment {}

impl AgentEnvironment {
    /// Checks names and values.
    ///
    /// # Errors
    /// [`SettingError`], naming the variable, never with its value.
    pub fn check(&self) -> Result<(), SettingError> {
        for (name, value) in &self.0 {
            if let Some(problem) = problem(name, value.expose_secret()) {
                return Err(SettingError { key: KEY, problem });
            }
        }
        Ok(())
    }

    /// Whether it chooses the certificate authorities.
    pub fn has_certificates(&self) -> bool {
        CERTIFICATES.iter().any(|name| self.0.contains_key(*name))
    }

    /// A proxy at an address of this host alone.
    pub fn proxy_of_this_host(&self) -> Option<&str> {
        let is_here = |(name, value): &(&String, &SecretString)| {
            let proxy = of_a_proxy(name) && !name.eq_ignore_ascii_case(NO_PROXY);
            let url = proxy.then(|| proxy_url(value.expose_secret())).flatten();
            url.is_some_and(|url| is_this_host(url.host()))
        };
        self.0.iter().find(is_here).map(|(name, _)| name.as_str())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The variables, those of proxies in both cases.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, &str)> {
        let both = self.0.iter().flat_map(|(name, value)| {
            let is_lower = name.starts_with(char::is_lowercase);
            let other = if is_lower { name.to_uppercase() } else { name.to_lowercase() };
            let other = (of_a_proxy(name) && !self.0.contains_key(&other)).then_some(other);
            [Some(name.clone()), other].into_iter().flatten().map(move |name| (name, value))
        });
        both.map(|(name, value)| (name, value.expose_secret()))
    }

    /// The variables as a file that systemd and `sh` read in the same way. [`check`](Self::check) refuses values that need
    /// an escape.
    pub(crate) fn file(&self) -> String {
        let mut file = String::new();
        for (name, value) in self.variables() {
            file.extend([&name, "='", value, "'\n"]);
        }
        file
    }
}

fn of_a_proxy(name: &str) -> bool {
    let upper = name.to_uppercase();
    let is_one_case = name == upper || name == name.to_lowercase();
    is_one_case && (PROXIES.contains(&&*upper) || upper == NO_PROXY)
}

fn problem(name: &str, value: &str) -> Option<String> {
    if !of_a_proxy(name) && !CERTIFICATES.contains(&name) {
        let names = [PROXIES.as_slice(), &[NO_PROXY], &CERTIFICATES].concat().join(", ");
        return Some(format!("{name:?} cannot be set for agents; the names are {names}"));
    }
    let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'\'' && byte != b'\\';
    if !value.bytes().all(is_plain) {
        return Some(format!(
            "the value of {name} must be ASCII without quotes and backslashes; write other characters of a \
             password as %XX"
        ));
    }
    if CERTIFICATES.contains(&name) {
        let problem = format!("{name} must be an absolute path on the machine");
        return (!value.starts_with('/')).then_some(problem);
    }
    if name.eq_ignore_ascii_case(NO_PROXY) || value.is_empty() || proxy_url(value).is_some() {
        return None;
    }
    Some(format!("{name} must be http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"))
}

fn proxy_url(value: &str) -> Option<Url> {
    // `Url` would overlook further slashes and spaces.
    let rest = value.strip_prefix("http://").unwrap_or(value);
    let is_clean = !rest.starts_with('/') && !rest.contains("://") && !rest.contains(' ');
    let url = is_clean.then(|| Url::parse(&format!("http://{rest}")).ok()).flatten();
    url.filter(Url::has_host)
}

/// Certificates of authorities that machines trust besides those of their system, each in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateAuthorities(Vec<String>);

/// A file that holds no certificates. The message follows the file's name.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("holds no certificate in PEM (`{BEGIN}`)")]
    Missing,
    #[error("is cut off: its last certificate has no `{END}`")]
    CutOff,
    #[error("holds a certificate that cannot be read, number {number}: {source}")]
    Invalid { number: usize, source: reqwest::Error },
}

impl CertificateAuthorities {
    /// Reads the certificates in a text, and leaves out what is between them.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub fn parse(text: &str) -> Result<Self, CertificateError> {
        let mut certificates = Vec::new();
        for part in text.split(BEGIN).skip(1) {
            let (encoded, _) = part.split_once(END).ok_or(CertificateError::CutOff)?;
            let lines = encoded.lines().map(str::trim).filter(|line| !line.is_empty());
            let encoded = lines.collect::<Vec<_>>().join("\n");
            let certificate = format!("{BEGIN}\n{encoded}\n{END}\n");
            let number = certificates.len() + 1;
            Certificate::from_pem(certificate.as_bytes())
                .map_err(|source| CertificateError::Invalid { number, source })?;
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            Err(CertificateError::Missing)
        } else {
            Ok(Self(certificates))
        }
    }

    pub(crate) fn certificates(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> AgentEnvironment {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        AgentEnvironment(variables.collect())
    }

    #[test]
    fn wrong_variables_are_refused_by_name_and_without_their_value() {
        for (name, value) in [
            ("LD_PRELOAD", "/secret.so"),
            ("Https_Proxy", "http://secret:1"),
            ("HTTPS_PROXY", "socks5://me:secret@proxy.example:1080"),
            ("http_proxy", "http://me:secret' @proxy.example"),
            ("ALL_PROXY", "http://me:secret\n@proxy.example"),
            ("ALL_PROXY", "//secret"),
            ("SSL_CERT_FILE", "secret.pem"),
        ] {
            let wrong = environment(&[(name, value)]);
            let SettingError { key, problem } = wrong.check().unwrap_err();
            assert!(key == KEY && problem.contains(name), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
            assert!(!format!("{wrong:?}").contains("secret"), "{wrong:?}");
        }
        let right = [
            ("HTTP_PROXY", "proxy:3128"),
            ("HTTPS_PROXY", "http://me:p%27$s@proxy.example:3128"),
            ("all_proxy", ""),
            ("NO_PROXY", "10.0.0.0/8, .internal"),
            ("SSL_CERT_DIR", "/etc/ssl/certs"),
        ];
        assert_eq!(environment(&right).check(), Ok(()));
    }

    #[test]
    fn proxies_are_written_in_both_cases() {
        let variables = [
            ("HTTPS_PROXY", "http://a:1"),
            ("no_proxy", "b"),
            ("NO_PROXY", "c"),
            ("SSL_CERT_FILE", "/d"),
        ];
        let file = environment(&variables).file();
        let expected = "HTTPS_PROXY='http://a:1'\nhttps_proxy='http://a:1'\nNO_PROXY='c'\nSSL_CERT_FILE='/d'\n\
                        no_proxy='b'\n";
        assert_eq!(file, expected);
        let output = std::process::Command::new("sh")
            .args([
                "-c",
                &format!(
                    "set -a\n{}env",
                    environment(&[("http_proxy", "http://a$b`c`\"d")]).file()
                ),
            ])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(printed.contains("HTTP_PROXY=http://a$b`c`\"d\n"), "{printed}");
    }

    #[test]
    fn only_certificates_of_a_file_are_kept() {
        let pem = crate::fixtures::CERTIFICATE;
        let key = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n";
        let text = format!("# ours\n{key}{pem}\nsubject=other\n{}", pem.replace('\n', "\r\n"));
        let authorities = CertificateAuthorities::parse(&text).unwrap();
        assert_eq!(authorities.certificates(), [pem, pem]);

        let problem = |text: &str| CertificateAuthorities::parse(text).unwrap_err().to_string();
        assert!(problem(key).contains("holds no certificate in PEM"));
        assert!(problem(pem.trim_end().trim_end_matches('-')).contains("cut off"));
        assert!(problem(&format!("{pem}{BEGIN}\nAAAA\n{END}\n")).contains("number 2: "));
    }
}
