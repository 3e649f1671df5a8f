//! TLS certificates that sign themselves, for servers of tests.

use std::net::IpAddr;

use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};

/// A certificate, which is its own authority, and its key, both as PEM.
pub struct SelfSigned {
    pub key: Vec<u8>,
    pub certificate: Vec<u8>,
}

impl SelfSigned {
    /// A certificate for `host`, a name or an address, that is valid today and tomorrow.
    pub fn for_host(host: &str) -> Self {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", "a private authority").unwrap();
        let name = name.build();
        let mut certificate = X509::builder().unwrap();
        certificate.set_version(2).unwrap();
        certificate.set_subject_name(&name).unwrap();
        certificate.set_issuer_name(&name).unwrap();
        certificate.set_pubkey(&key).unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
        let mut names = SubjectAlternativeName::new();
        let names = if host.parse::<IpAddr>().is_ok() { names.ip(host) } else { names.dns(host) };
        let names = names.build(&certificate.x509v3_context(None, None));
        certificate.append_extension(names.unwrap()).unwrap();
        certificate.sign(&key, MessageDigest::sha256()).unwrap();
        Self {
            key: key.private_key_to_pem_pkcs8().unwrap(),
            certificate: certificate.build().to_pem().unwrap(),
        }
    }

    /// The key and the certificate in one file's text.
    pub fn pem(&self) -> Vec<u8> {
        [&*self.key, &*self.certificate].concat()
    }
}
