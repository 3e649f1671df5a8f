//! GitHub's deliveries, and its list of them.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use super::GitHub;
use super::world::{Delivery, now};

pub(crate) const SECRET: &str = "webhook-secret-0815";

/// `X-Hub-Signature-256` of `body`.
fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    format!("sha256={}", hex(&mac.finalize().into_bytes()))
}

/// `bytes` in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// An id in the form of GitHub's ids of deliveries.
fn guid() -> String {
    let digits = format!("{:032x}", rand::random::<u128>());
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}

impl GitHub {
    /// Sets the core that gets the deliveries.
    pub(crate) fn delivers_to(&self, url: &str) {
        *self.hook.lock().unwrap() = Some(format!("{url}/api/v1/webhooks/github"));
    }

    /// Delivers, and records the answer's status, which is 502 if core is down.
    pub(crate) async fn delivers(&self, event: &str, payload: Value) -> Option<Delivery> {
        self.hook.lock().unwrap().as_ref()?;
        let delivery = Delivery {
            id: self.world().next_id(),
            guid: guid(),
            event: event.to_owned(),
            payload,
            at: now(),
            is_redelivery: false,
            status: 0,
            answer: String::new(),
        };
        Some(self.tries(delivery).await)
    }

    /// Delivers once more, as people can request.
    pub(crate) async fn redelivers(&self, delivery: &Delivery) -> Delivery {
        let id = self.world().next_id();
        self.tries(Delivery { id, at: now(), is_redelivery: true, ..delivery.clone() }).await
    }

    async fn tries(&self, mut delivery: Delivery) -> Delivery {
        let body = delivery.payload.to_string();
        let signature = signature(SECRET, body.as_bytes());
        (delivery.status, delivery.answer) =
            self.post(&delivery.event, &delivery.guid, body, Some(&signature)).await;
        self.world().deliveries.push(delivery.clone());
        delivery
    }

    /// Posts as somebody without the secret. Returns the answer's status and text.
    pub(crate) async fn posts_forged(
        &self,
        event: &str,
        payload: &Value,
        forged: Forged,
    ) -> (u16, String) {
        let body = payload.to_string();
        let signature = match forged {
            Forged::None => None,
            Forged::OtherSecret => Some(signature("guessed", body.as_bytes())),
            Forged::OtherBody => Some(signature(SECRET, b"{}")),
            Forged::NoHex => Some("sha256=zz".to_owned()),
            Forged::OldAlgorithm => {
                Some("sha1=a84d88e7554fc1fa21bcbc4efae3c782a70d2b9d".to_owned())
            }
        };
        self.post(event, &guid(), body, signature.as_deref()).await
    }

    async fn post(
        &self,
        event: &str,
        guid: &str,
        body: String,
        signature: Option<&str>,
    ) -> (u16, String) {
        let url = self.hook.lock().unwrap().clone().expect("a webhook is set up");
        let mut request = self
            .http
            .post(url)
            .header("user-agent", "GitHub-Hookshot/b8c71d8")
            .header("content-type", "application/json")
            .header("x-github-event", event)
            .header("x-github-delivery", guid)
            .header("x-github-hook-id", "42")
            .body(body);
        if let Some(signature) = signature {
            request = request.header("x-hub-signature-256", signature);
        }
        match request.send().await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap_or_default()),
            Err(_) => (502, String::new()),
        }
    }
}

/// An invalid signature.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forged {
    /// No signature.
    None,
    /// Signed with another secret.
    OtherSecret,
    /// The signature of another body.
    OtherBody,
    /// No hexadecimal digits.
    NoHex,
    /// The algorithm that GitHub no longer uses.
    OldAlgorithm,
}
