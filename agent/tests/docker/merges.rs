//! Merges of images for several platforms.

use serde_json::json;
use stagely_protocol::{Arch, FailureReason, Status, StatusState};

use crate::setup::Setup;

const BOTH: [&str; 2] = ["linux/amd64", "linux/arm64"];

impl Setup {
    /// Builds `FROM scratch` with `text` in it for both platforms; returns the images by digest.
    async fn both_platforms(&self, text: &str) -> Vec<String> {
        let mut images = Vec::new();
        for arch in Arch::ALL {
            let target = self.image(&format!("app-{text}-{arch}"));
            let config = json!({ "platform": format!("linux/{arch}"), "target_image": target });
            let dockerfile = format!("FROM scratch\nCOPY Dockerfile /{text}\n");
            let status = self.run(self.build(&[("Dockerfile", &dockerfile)], config)).await;
            assert_eq!(status.state, StatusState::Completed, "{}", self.log());
            let is_native = arch == Arch::of_this_program();
            assert_eq!(status.warnings.is_empty(), is_native, "{:?}", status.warnings);
            let image = status.artifact_url.unwrap().at_digest(&status.digest.unwrap());
            images.push(image.to_string());
        }
        images
    }

    pub(crate) async fn merge(&self, images: &[String], platforms: &[&str]) -> Status {
        let message = json!({
            "type": "MERGE", "job_id": "job_merge_xk82", "source_images": images,
            "target_image": self.image("app"), "platforms": platforms, "registry_auth": self.auth(),
        });
        self.run(message).await
    }
}

#[tokio::test]
async fn platforms_are_joined_and_counted() {
    let setup = Setup::new("merge");
    let images = setup.both_platforms("file").await;
    let status = setup.merge(&images, &BOTH).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let index = status.artifact_url.unwrap().at_digest(status.digest.as_ref().unwrap());
    let again = setup.merge(&[index.to_string()], &BOTH).await;
    assert_eq!(again.digest, status.digest, "{again:?}");
    let status = setup.merge(&images, &["linux/amd64"]).await;
    assert_eq!(status.error, Some(FailureReason::Internal));
    assert!(status.error_message.unwrap().contains("linux/arm64"));
}

#[tokio::test]
async fn two_merges_into_one_tag_report_their_own_digests() {
    let one = Setup::new("merges");
    let other = Setup { name: one.name.clone(), ..Setup::new("merges") };
    let (ones, others) = (one.both_platforms("one").await, other.both_platforms("other").await);
    // An index depends only on its images.
    let alone = (one.merge(&ones, &BOTH).await.digest, other.merge(&others, &BOTH).await.digest);
    assert!(alone.0.is_some() && alone.1.is_some() && alone.0 != alone.1);
    for _ in 0..5 {
        let (one, other) = tokio::join!(one.merge(&ones, &BOTH), other.merge(&others, &BOTH));
        assert_eq!((one.digest, other.digest), alone);
    }
}
