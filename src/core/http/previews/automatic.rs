//! Requests that no person and no program of theirs makes on purpose: they wake no preview and keep none awake.

use axum::http::header::{HeaderName, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};

/// Parts of the names by which crawlers, monitors and the link previews of chat programs introduce themselves, in lower
/// case.
const AGENTS: [&str; 24] = [
    "bingpreview",
    "crawler",
    "elb-healthchecker",
    "embedly",
    "facebookexternalhit",
    "facebookcatalog",
    "feedfetcher",
    "google-inspectiontool",
    "google-read-aloud",
    "googlehc",
    "iframely",
    "kube-probe",
    "mattermost",
    "pingdom",
    "prometheus",
    "site24x7",
    "skypeuripreview",
    "slack-imgproxy",
    "spider",
    "statuscake",
    "uptime",
    "validator",
    "vkshare",
    "whatsapp",
];

/// What browsers fetch by themselves, beside the page that somebody opens.
const OWN_FILES: [&str; 2] = ["/favicon.ico", "/robots.txt"];
const OWN_ICONS: &str = "/apple-touch-icon";

/// What browsers say about a page that they fetch before somebody opens it.
const PURPOSES: [HeaderName; 3] = [
    HeaderName::from_static("sec-purpose"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("x-moz"),
];

/// Whether the request is no use of the preview.
pub(super) fn is_automatic(request: &Parts) -> bool {
    let path = request.uri.path();
    request.method == Method::HEAD
        || OWN_FILES.contains(&path)
        || path.starts_with(OWN_ICONS)
        || is_prefetch(&request.headers)
        || request.headers.get(USER_AGENT).is_some_and(|agent| is_bot(agent.as_bytes()))
}

fn is_prefetch(headers: &HeaderMap) -> bool {
    let says_so = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("prefetch"))
    };
    PURPOSES.iter().any(|name| headers.get_all(name).into_iter().any(says_so))
}

fn is_bot(agent: &[u8]) -> bool {
    let agent = String::from_utf8_lossy(agent).to_ascii_lowercase();
    // `Slackbot-LinkExpanding`, `Googlebot/2.1`, `TelegramBot (like TwitterBot)`, but not the telephones called Cubot.
    let mut words = agent.split(|character: char| !character.is_ascii_alphanumeric());
    AGENTS.iter().any(|known| agent.contains(known))
        || words.any(|word| (word.ends_with("bot") && word != "cubot") || word == "bots")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn request(method: Method, path: &str, header: (&str, &str)) -> Parts {
        let request = Request::builder().method(method).uri(path).header(header.0, header.1);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn bots_and_monitors_are_distinguished_from_people_and_their_programs() {
        for (agent, is_automatic_one) in [
            ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", true),
            ("Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)", true),
            ("TelegramBot (like TwitterBot)", true),
            ("facebookexternalhit/1.1", true),
            ("WhatsApp/2.23.20.0", true),
            ("Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5", true),
            ("Mozilla/5.0 (compatible; UptimeRobot/2.0)", true),
            ("kube-probe/1.30", true),
            ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", false),
            ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/126.0.0.0", false),
            ("Mozilla/5.0 (Linux; Android 11; CUBOT X50) Chrome/126.0 Mobile", false),
            ("curl/8.14.1", false),
            ("python-requests/2.32.3", false),
        ] {
            let found = is_automatic(&request(Method::GET, "/", ("user-agent", agent)));
            assert_eq!(found, is_automatic_one, "{agent}");
        }
    }

    #[test]
    fn what_browsers_fetch_by_themselves_is_no_use() {
        let plain = ("accept", "*/*");
        assert!(is_automatic(&request(Method::HEAD, "/", plain)));
        for path in ["/favicon.ico", "/robots.txt", "/apple-touch-icon-120x120.png"] {
            assert!(is_automatic(&request(Method::GET, path, plain)), "{path}");
        }
        assert!(is_automatic(&request(Method::GET, "/", ("sec-purpose", "prefetch;prerender"))));
        assert!(is_automatic(&request(Method::GET, "/", ("purpose", "prefetch"))));
        for path in ["/", "/favicon.png", "/app/favicon.ico"] {
            assert!(!is_automatic(&request(Method::GET, path, plain)), "{path}");
        }
    }
}
