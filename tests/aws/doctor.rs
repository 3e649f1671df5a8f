//! `stagely doctor aws`.

use std::process::Command;

use serde_json::Value;
use stagely_test_support::program;

use crate::STAGELY;
use crate::moto::{AMD64, ARM64, Cloud, REGION};
use crate::proxy::Fate;

/// The command `stagely doctor aws` with a configuration for a cloud.
struct Doctor {
    folder: tempfile::TempDir,
    url: String,
}

impl Doctor {
    fn of(cloud: &Cloud, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = cloud.proxy.url.clone();
        let text = format!("[aws]\nregion = \"{REGION}\"\nendpoint = \"{url}\"\n{settings}\n");
        std::fs::write(folder.path().join("stagely.toml"), text).unwrap();
        Self { folder, url }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(STAGELY);
        command
            .args(["doctor", "aws", "--config"])
            .arg(self.folder.path().join("stagely.toml"))
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("AWS_ENDPOINT_URL_STS", &self.url)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_COLOR", "1");
        command
    }

    /// The output and the exit code.
    async fn says(&self, arguments: &[&str]) -> (String, i32) {
        let mut command = self.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        run(command).await
    }

    async fn finds(&self) -> (Value, i32) {
        let (text, code) = self.says(&["--json"]).await;
        (serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")), code)
    }
}

async fn run(mut command: Command) -> (String, i32) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (text, output.status.code().unwrap())
}

fn details<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let findings = report["findings"].as_array().unwrap().iter();
    let found = findings.filter(|finding| finding["verdict"] == verdict);
    found.map(|finding| finding["detail"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_complete_account_has_all_permissions_and_offers() {
    let cloud = Cloud::start().await;
    let doctor = Doctor::of(&cloud, "");

    let (report, code) = doctor.finds().await;

    assert_eq!(code, 0, "{report:#}");
    assert_eq!(details(&report, "error"), [""; 0]);
    let good = details(&report, "ok");
    for part in [
        "arn:aws:sts:",
        REGION,
        "ec2:DescribeInstances",
        "ec2:DescribeImages",
        "ec2:DescribeInstanceTypes",
        "ec2:RunInstances",
        "ec2:CreateTags",
    ] {
        assert!(good.iter().any(|detail| detail.contains(part)), "{part}: {report:#}");
    }
    let images = report["findings"].as_array().unwrap().iter();
    let images: Vec<&Value> = images.filter(|finding| finding["check"] == "image").collect();
    for (arch, id, image) in [("amd64", AMD64, images[0]), ("arm64", ARM64, images[1])] {
        let detail = image["detail"].as_str().unwrap();
        assert!(detail.starts_with(arch) && detail.contains(id), "{detail}");
        assert!(detail.ends_with("days old"), "{detail}");
    }
    let offers = report["offers"].as_array().unwrap();
    let is_default =
        |offer: &&Value| offer["fleet"] == "builder" && offer["instance_type"] == "c5.xlarge";
    let offer = offers.iter().find(is_default).unwrap();
    assert_eq!((&offer["price"], &offer["spot"]), (&"$0.170".into(), &true.into()));
    assert!(report.get("policy").is_none());
    assert_eq!(cloud.instances().await, [], "a dry run starts nothing");

    let (text, _) = doctor.says(&[]).await;
    assert!(text.contains("c6g.xlarge") && text.contains("PRICE/HOUR"), "{text}");
}

#[tokio::test]
async fn a_missing_permission_is_named_and_a_policy_is_printed() {
    let cloud = Cloud::start().await;
    let dry_run = ("DryRun", "true");
    let refused = Fate::Refused("UnauthorizedOperation", 403);
    cloud.proxy.all_having("RunInstances", dry_run, refused);

    let (report, code) = Doctor::of(&cloud, "").finds().await;

    assert_eq!(code, 1, "{report:#}");
    let errors = details(&report, "error");
    assert_eq!(errors.len(), 1, "{report:#}");
    assert!(errors[0].starts_with("ec2:RunInstances is missing"), "{errors:?}");
    let statements = report["policy"]["Statement"].as_array().unwrap();
    assert!(
        statements.iter().any(|statement| statement["Action"] == "ec2:RunInstances"),
        "{report:#}"
    );
}

#[tokio::test]
async fn a_policy_is_printed_without_a_request() {
    let cloud = Cloud::start().await;
    let (text, code) =
        Doctor::of(&cloud, "instance-profile = \"builder\"").says(&["--policy"]).await;
    assert_eq!(code, 0, "{text}");
    let policy: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    assert!(text.contains("iam:PassRole") && text.contains(REGION), "{text}");
    assert!(cloud.proxy.seen("RunInstances").is_empty());
}

#[tokio::test]
async fn missing_images_subnets_and_credentials_are_reported_with_advice() {
    let cloud = Cloud::without_golden_images().await;
    let doctor = Doctor::of(&cloud, "subnets = [\"subnet-0123456789abcdef0\"]");
    let (report, code) = doctor.finds().await;
    assert_eq!(code, 1, "{report:#}");
    let errors = details(&report, "error").join("\n");
    assert!(errors.contains("InvalidSubnetID.NotFound"), "{report:#}");
    assert!(errors.contains("none of 24 can be launched"), "{report:#}");
    let warnings = details(&report, "warning").join("\n");
    assert!(warnings.contains("no golden image for amd64"), "{report:#}");

    let before = cloud.proxy.seen("DescribeInstances").len();
    let (text, code) = run(doctor.command(&[])).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("credentials") && text.contains("AWS_PROFILE"), "{text}");
    assert_eq!(text.matches("error  ").count(), 1, "{text}");
    assert_eq!(cloud.proxy.seen("DescribeInstances").len(), before, "nothing is sent without");
}
