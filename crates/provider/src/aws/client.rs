//! The connection to AWS: region, credentials, time limits and retries.

use std::time::Duration;

use anyhow::Context as _;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::Client;

use super::http::Http;
use crate::aws::AwsSettings;

/// The time limit of one request. `RunInstances` takes some seconds.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(30);
/// The time limit of a request with all its retries.
const OPERATION_LIMIT: Duration = Duration::from_mins(2);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The attempts of requests that change nothing. The SDK does not retry `RunInstances`: see `launch`.
const ATTEMPTS: u32 = 4;

/// Creates a client of EC2, and the configuration for clients of other AWS services. Nothing is sent.
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
        // The SDK also fetches the credentials of a role or of SSO with this client.
        .http_client(Http::default())
        // It watches how fast the SDK's own client takes a request's body, which this one takes at once: an answer
        // that takes 5 s would count as stalled. The limits below bound each request.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    // On the heap, because the future is large and would enlarge those of all callers.
    let shared = Box::pin(loader.load()).await;
    shared.region().context("no region is named: set `region` in [aws], or AWS_REGION")?;
    let mut ec2 = aws_sdk_ec2::config::Builder::from(&shared);
    if let Some(endpoint) = &config.endpoint {
        ec2 = ec2.endpoint_url(endpoint.as_str());
    }
    Ok((Client::from_conf(ec2.build()), shared))
}
