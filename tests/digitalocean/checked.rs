//! prism between the requests and the fake: it checks requests and responses against `DigitalOcean`'s own description
//! of its API.
//!
//! It takes seconds to start, so all tests of this program share one process. The token tells their accounts apart.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use serde_json::json;
use stagely_test_support::ports::free_port;
use stagely_test_support::wait::eventually_blocking;

use crate::fake::{self, Shared};

/// The accounts, by their tokens.
static ACCOUNTS: Mutex<Option<HashMap<String, Shared>>> = Mutex::new(None);

/// Routes requests with `token` to `account`.
pub(crate) fn add(token: &str, account: Shared) {
    let mut accounts = ACCOUNTS.lock().unwrap();
    accounts.get_or_insert_default().insert(token.to_owned(), account);
}

pub(crate) fn account(token: &str) -> Option<Shared> {
    ACCOUNTS.lock().unwrap().as_ref()?.get(token).cloned()
}

/// The address of prism; `None` where it is not installed.
pub(crate) fn address() -> Option<&'static str> {
    static ADDRESS: OnceLock<Option<(String, Mutex<Child>)>> = OnceLock::new();
    let found = ADDRESS.get_or_init(|| {
        let setting = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let description = setting("STAGELY_DIGITALOCEAN_DESCRIPTION");
        let (Some(description), Some(prism)) = (description, setting("STAGELY_PRISM")) else {
            // Not `eprintln!`, whose output is only shown for failed tests.
            let note = "note: STAGELY_DIGITALOCEAN_DESCRIPTION and STAGELY_PRISM are not set: requests \
                        are not checked against DigitalOcean's description";
            let _ = writeln!(std::io::stderr(), "{note}");
            return None;
        };
        Some(start(&prism, &description))
    });
    found.as_ref().map(|(address, _)| &**address)
}

fn start(prism: &str, description: &str) -> (String, Mutex<Child>) {
    let upstream = serve_accounts();
    let port = free_port();
    // The shell's input ends with this process, for whatever reason. Then it ends prism.
    let script = "\"$@\" & prism=$!; cat >/dev/null; kill $prism";
    let child = Command::new("sh")
        .args(["-c", script, "sh", prism, "proxy", "--errors", "--host", "127.0.0.1"])
        .args(["--port", &port.to_string(), description, &upstream])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let what = format!("{prism} answers for {description}");
    // On a thread of its own, because the test that calls this has a runtime already.
    std::thread::scope(|scope| {
        scope.spawn(|| eventually_blocking(&what, || answers(port).then_some(())));
    });
    (format!("http://127.0.0.1:{port}"), Mutex::new(child))
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let request = b"GET /v2/none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains("NO_PATH_MATCHED")
}

/// Serves all accounts in a runtime of its own, because the runtime of a test ends with the test.
fn serve_accounts() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let app = Router::new()
                .fallback(async |request: Request| -> Response { fake::answer(request).await });
            axum::serve(listener, app).await.unwrap();
        });
    });
    address
}

#[tokio::test]
async fn requests_and_responses_that_differ_from_the_description_are_complaints() {
    let cloud = fake::Cloud::start().await;
    if address().is_none() {
        return;
    }
    let (http, url, token) = (reqwest::Client::new(), cloud.url.clone(), cloud.token());
    let complaints = async |request: reqwest::RequestBuilder| {
        let status = request.bearer_auth(&token).send().await.unwrap().status();
        (status.as_u16(), std::mem::take(&mut cloud.world().complaints).join(" "))
    };

    let (status, complaint) = complaints(http.get(format!("{url}/v2/droplets?per_page=201"))).await;
    assert!(status == 422 && complaint.contains("per_page must be <= 200"), "{status} {complaint}");
    let creation = json!({ "name": "vm_1", "size": "c-4", "image": 7003 });
    let (_, complaint) = complaints(http.post(format!("{url}/v2/droplets")).json(&creation)).await;
    assert!(complaint.contains("name must match pattern"), "{complaint}");
    let (_, complaint) = complaints(http.get(format!("{url}/v2/nonsense"))).await;
    assert!(complaint.contains("no path matched"), "{complaint}");
    // A wrong response of the fake.
    cloud.world().sizes[0].price_hourly = f64::NAN;
    let (_, complaint) = complaints(http.get(format!("{url}/v2/sizes"))).await;
    assert!(complaint.contains("price_hourly must be number"), "{complaint}");
    let (status, complaint) = complaints(http.get(format!("{url}/v2/account"))).await;
    assert_eq!((status, &*complaint), (200, ""));
}
