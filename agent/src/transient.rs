//! The short list of failures that may pass by themselves: connections that fail, name servers that do not answer, and
//! servers that are overloaded or restarting. Everything else is final, and is reported at once.

use std::error::Error;

use stagely_protocol::ErrorChain;

/// Messages of libgit2 and of HTTP clients about connections that fail, in lower case.
const CONNECTION: [&str; 20] = [
    "failed to connect",
    "failed to resolve",
    "temporary failure in name resolution",
    "could not connect",
    "connection refused",
    "connection reset",
    "connection closed",
    "connection aborted",
    "network is unreachable",
    "no route to host",
    "broken pipe",
    "timed out",
    "timeout",
    "eof",
    "end of file",
    "disconnect",
    "ended unexpectedly",
    "error reading from",
    "could not read",
    "syscall",
];

/// Messages about a host name that has no address, in lower case. It is usually misspelled. A name server that does not
/// answer has other messages.
const UNKNOWN_HOST: [&str; 4] = [
    "no such host",
    "name or service not known",
    "no address associated with hostname",
    "name does not resolve",
];

/// Whether the status is that of a server which is overloaded or restarting.
pub const fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// Whether a request that got no response may get one the next time.
pub fn is_transient_error(error: &(dyn Error + 'static)) -> bool {
    is_connection_failure(&ErrorChain(error).to_string().to_ascii_lowercase())
}

/// Whether `text`, in lower case, is about a connection that failed and may succeed the next time.
pub(crate) fn is_connection_failure(text: &str) -> bool {
    // The name of a server may contain any of the words, but this only delays a failure.
    !text.contains("certificate")
        && !is_unknown_host(text)
        && CONNECTION.iter().any(|words| text.contains(words))
}

/// Whether `text`, in lower case, says that a host name has no address.
pub(crate) fn is_unknown_host(text: &str) -> bool {
    UNKNOWN_HOST.iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_list_of_statuses_that_pass_is_short() {
        let transient: Vec<u16> =
            (100..600).filter(|status| is_transient_status(*status)).collect();
        let expected: Vec<u16> = [408, 425, 429].into_iter().chain(500..600).collect();
        assert_eq!(transient, expected);
    }

    #[test]
    fn only_failed_connections_are_worth_another_attempt() {
        let cases = [
            ("tcp connect error: Connection refused (os error 111)", true),
            ("connection error: Connection reset by peer (os error 104)", true),
            ("connection closed before message completed", true),
            ("operation timed out", true),
            (
                "dns error: failed to lookup address information: Temporary failure in name resolution",
                true,
            ),
            ("unexpected EOF during handshake", true),
            ("dns error: failed to lookup address information: Name or service not known", false),
            ("dial tcp: lookup registry.example: no such host", false),
            (
                "error:0A000086:SSL routines::certificate verify failed (self-signed certificate)",
                false,
            ),
            ("error:0A00010B:SSL routines::wrong version number", false),
            ("builder error: relative URL without a base", false),
            ("too many redirects", false),
            ("invalid HTTP version parsed", false),
        ];
        for (words, is_transient) in cases {
            assert_eq!(is_transient_error(&io::Error::other(words)), is_transient, "{words}");
        }
    }

    #[tokio::test]
    async fn real_requests_fail_for_good_or_for_the_moment() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let closing = std::thread::spawn(move || {
            drop(server.accept().unwrap());
            let (mut plain, _) = server.accept().unwrap();
            io::Write::write_all(&mut plain, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            io::Read::read_to_end(&mut plain, &mut Vec::new()).ok();
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let failed = async |url: String| client.get(url).send().await.unwrap_err();

        let error = failed(format!("http://{address}/")).await;
        assert!(is_transient_error(&error), "{error:?}");
        let error = failed(format!("https://{address}/")).await;
        assert!(!is_transient_error(&error), "{error:?}");
        closing.join().unwrap();
        let error = failed(format!("http://{address}/")).await;
        assert!(is_transient_error(&error), "{error:?}");
    }
}
