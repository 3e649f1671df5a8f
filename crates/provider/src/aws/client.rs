//! The connection to AWS: region, credentials, time limits.

use std::time::Duration;

use anyhow::Context as _;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::Client;

use super::http::Http;
use crate::aws::AwsSettings;

/// How long one request may take. `RunInstances` takes some seconds.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(30);
/// How long a request may take with all its repetitions.
const OPERATION_LIMIT: Duration = Duration::from_mins(2);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of requests that change nothing. `RunInstances` is sent once at a time: see `launch`.
const ATTEMPTS: u32 = 4;

/// Makes a client of EC2, and what clients of AWS's other services are made of. Nothing is sent.
///
/// # Errors
/// No region is named anywhere.
pub async fn connect(config: &AwsSettings) -> anyhow::Result<(Client, SdkConfig)> {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_attempt_timeout(ATTEMPT_LIMIT)
        .operation_timeout(OPERATION_LIMIT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        // Credentials of a role or of SSO are fetched with it, too.
        .http_client(Http::default())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    // On the heap: it is large, and so would be whatever waits for it.
    let shared = Box::pin(loader.load()).await;
    shared.region().context("no region is named: set `region` in [aws], or AWS_REGION")?;
    let mut ec2 = aws_sdk_ec2::config::Builder::from(&shared);
    if let Some(endpoint) = &config.endpoint {
        ec2 = ec2.endpoint_url(endpoint.as_str());
    }
    Ok((Client::from_conf(ec2.build()), shared))
}
