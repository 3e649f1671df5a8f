//! A proxy in front of moto that adds what moto lacks: EC2's refusals, lost responses, client tokens, and lists that
//! are behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;
use url::form_urlencoded;

/// The parameters of a request to EC2's query API.
pub(crate) type Parameters = HashMap<String, String>;

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// The proxy refuses it with this code and status.
    Refused(&'static str, u16),
    /// moto answers, and the connection breaks before the client has read the response.
    ResponseLost,
    /// moto answers, and the client waits without end.
    ResponseHeld,
    /// In the response, all instances have ended with this code.
    Ended(&'static str),
}

struct Rule {
    action: &'static str,
    /// A parameter that the request must have.
    having: Option<(&'static str, &'static str)>,
    fate: Fate,
    /// The number of matching requests that are skipped first.
    skip: usize,
    times: usize,
}

#[derive(Default)]
struct Shared {
    moto: String,
    account: String,
    http: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Parameters>>,
    /// The request and response of each client token.
    tokens: tokio::sync::Mutex<HashMap<String, (Parameters, Bytes)>>,
    page_size: Mutex<Option<u32>>,
    /// The prices of the spot market, by type and zone; `None`: moto's own.
    spot_prices: Mutex<Option<Vec<SpotPrice>>>,
    is_behind: Mutex<bool>,
    held: watch::Sender<usize>,
}

/// The proxy of one test. It ends with the test's runtime.
pub(crate) struct Proxy {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Forwards requests to `moto` for `account`.
    pub(crate) async fn start(moto: String, account: String) -> Self {
        let shared = Arc::new(Shared { moto, account, ..Shared::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, shared }
    }

    /// Lets the next `times` requests for `action` have `fate`.
    pub(crate) fn next(&self, times: usize, action: &'static str, fate: Fate) {
        let rule = Rule { action, having: None, fate, skip: 0, times };
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Lets all requests for `action` but the next have `fate`.
    pub(crate) fn all_but_one(&self, action: &'static str, fate: Fate) {
        let rule = Rule { action, having: None, fate, skip: 1, times: usize::MAX };
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Lets all requests for `action` that have a parameter have `fate`.
    pub(crate) fn all_having(
        &self,
        action: &'static str,
        having: (&'static str, &'static str),
        fate: Fate,
    ) {
        let rule = Rule { action, having: Some(having), fate, skip: 0, times: usize::MAX };
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Removes all rules.
    pub(crate) fn behave(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Lists have pages of this size, whatever the request says.
    pub(crate) fn set_page_size(&self, size: u32) {
        *self.shared.page_size.lock().unwrap() = Some(size);
    }

    /// Whether lists are still those before the first instance.
    pub(crate) fn set_behind(&self, is_behind: bool) {
        *self.shared.is_behind.lock().unwrap() = is_behind;
    }

    /// The prices of the spot market from now on: moto has a fixed one.
    pub(crate) fn set_spot_prices(&self, prices: &[SpotPrice]) {
        *self.shared.spot_prices.lock().unwrap() = Some(prices.to_vec());
    }

    /// All requests for `action` so far.
    pub(crate) fn seen(&self, action: &str) -> Vec<Parameters> {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|parameters| parameters["Action"] == action).cloned().collect()
    }

    /// Waits until a response is held.
    pub(crate) async fn holds_a_response(&self) {
        let held = self.shared.held.subscribe().wait_for(|held| *held > 0).await.map(|_| ());
        held.unwrap();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let parameters: Parameters = form_urlencoded::parse(&body).into_owned().collect();
    let Some(action) = parameters.get("Action").cloned() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    shared.seen.lock().unwrap().push(parameters.clone());
    let fate = shared.fate_of(&action, &parameters);
    if let Some(Fate::Refused(code, status)) = fate {
        return refusal(code, status);
    }
    let prices = shared.spot_prices.lock().unwrap().clone();
    if let Some(prices) = prices.filter(|_| action == "DescribeSpotPriceHistory") {
        return xml(StatusCode::OK, price_history(&prices, &parameters));
    }
    if action == "DescribeInstances" && *shared.is_behind.lock().unwrap() {
        return xml(StatusCode::OK, NO_INSTANCES);
    }
    let response = if action == "RunInstances" {
        shared.launch(&headers, parameters).await
    } else {
        let (status, answer) = shared.forward(&headers, parameters).await;
        xml(status, answer)
    };
    match fate {
        Some(Fate::ResponseLost) => {
            let broken = futures_util::stream::once(async { Err::<Bytes, _>("the line is cut") });
            Response::new(Body::from_stream(broken))
        }
        Some(Fate::ResponseHeld) => {
            shared.held.send_modify(|held| *held += 1);
            std::future::pending().await
        }
        Some(Fate::Ended(code)) => {
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            xml(StatusCode::OK, ended(&String::from_utf8_lossy(&body), code))
        }
        _ => response,
    }
}

impl Shared {
    fn fate_of(&self, action: &str, parameters: &Parameters) -> Option<Fate> {
        let mut rules = self.rules.lock().unwrap();
        let applies = |rule: &&mut Rule| {
            let has = |(name, value): (&str, &str)| {
                parameters.get(name).is_some_and(|found| found == value)
            };
            rule.times > 0 && rule.action == action && rule.having.is_none_or(has)
        };
        let rule = rules.iter_mut().find(applies)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fate.clone())
    }

    /// Launches once for each client token, as EC2 does and moto does not.
    async fn launch(&self, headers: &HeaderMap, parameters: Parameters) -> Response {
        let mut tokens = self.tokens.lock().await;
        let token = parameters.get("ClientToken").cloned().unwrap_or_default();
        if let Some((request, answer)) = tokens.get(&token) {
            if *request != parameters {
                return refusal("IdempotentParameterMismatch", 400);
            }
            return xml(StatusCode::OK, answer.clone());
        }
        let (status, answer) = self.forward(headers, parameters.clone()).await;
        if status.is_success() && !token.is_empty() {
            tokens.insert(token, (parameters, answer.clone()));
        }
        xml(status, answer)
    }

    async fn forward(
        &self,
        headers: &HeaderMap,
        mut parameters: Parameters,
    ) -> (StatusCode, Bytes) {
        if let (Some(size), Some(asked)) =
            (*self.page_size.lock().unwrap(), parameters.get_mut("MaxResults"))
        {
            *asked = size.to_string();
        }
        let body =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let mut request = self.http.post(&self.moto).body(body);
        // moto finds the service in these headers.
        for name in ["authorization", "content-type"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value.as_bytes());
            }
        }
        let answer = request.header("x-moto-account-id", &self.account).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap())
    }
}

/// A price of an hour: type, zone, amount, and how many hours ago it began.
pub(crate) type SpotPrice = (&'static str, &'static str, &'static str, i64);

/// One price a page, as far as the request wants it.
fn price_history(prices: &[SpotPrice], parameters: &Parameters) -> String {
    let is_wanted = |(name, ..): &&SpotPrice| {
        let mut wanted = parameters.iter().filter(|(key, _)| key.starts_with("InstanceType."));
        wanted.any(|(_, value)| value == name)
    };
    let page: usize = parameters.get("NextToken").map_or(0, |token| token.parse().unwrap());
    let wanted: Vec<&SpotPrice> = prices.iter().filter(is_wanted).collect();
    let item = wanted.get(page).map_or_else(String::new, |(name, zone, price, hours)| {
        let at = 1_796_000_000 - hours * 3600;
        let at = jiff::Timestamp::from_second(at).unwrap();
        format!(
            "<item><instanceType>{name}</instanceType><productDescription>Linux/UNIX</productDescription>\
             <spotPrice>{price}</spotPrice><timestamp>{at}</timestamp>\
             <availabilityZone>{zone}</availabilityZone></item>"
        )
    });
    let next = if page + 1 < wanted.len() { (page + 1).to_string() } else { String::new() };
    format!(
        "<DescribeSpotPriceHistoryResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>prices</requestId><spotPriceHistorySet>{item}</spotPriceHistorySet>\
         <nextToken>{next}</nextToken></DescribeSpotPriceHistoryResponse>"
    )
}

const NO_INSTANCES: &str = "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
     <requestId>behind</requestId><reservationSet/></DescribeInstancesResponse>";

/// The instances of a list, as EC2 shows those that it has ended at their launch.
fn ended(list: &str, code: &str) -> String {
    let reason = format!(
        "<name>terminated</name></instanceState>\
         <stateReason><code>{code}</code><message>{code}: Client error on launch</message></stateReason>"
    );
    let mut text = String::new();
    let mut rest = list;
    while let Some((before, state)) = rest.split_once("<name>running</name>") {
        let (_, after) = state.split_once("</instanceState>").unwrap();
        text.push_str(before);
        text.push_str(&reason);
        rest = after;
    }
    text + rest
}

fn refusal(code: &str, status: u16) -> Response {
    // As EC2 does, the message names the permission and ends with an encoded part.
    let message = match code {
        "UnauthorizedOperation" => {
            "You are not authorized to perform this operation. User: arn:aws:iam::1:user/core is not \
             authorized to perform: ec2:RunInstances on resource: arn:aws:ec2:*. Encoded authorization \
             failure message: AbCdEf"
        }
        "DryRunOperation" => "Request would have succeeded, but DryRun flag is set.",
        _ => "as the test wants it",
    };
    let text = format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
         <RequestID>refused</RequestID></Response>"
    );
    xml(StatusCode::from_u16(status).unwrap(), text)
}

fn xml(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", "text/xml".parse().unwrap());
    response
}
