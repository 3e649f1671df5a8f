//! EC2's errors, and what follows from each code.
//!
//! Source: Amazon EC2 API reference, "Error codes for the Amazon EC2 API".

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use stagely_protocol::ErrorChain;

use crate::{LaunchError, ProviderError};

/// A failed request.
#[derive(Debug)]
pub(super) struct Ec2Error {
    /// EC2's code, if EC2 answered.
    code: Option<String>,
    message: String,
    pub(super) kind: Kind,
}

/// What follows from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no capacity at the moment, or a limit of the account is reached. Nothing was started.
    Capacity,
    /// The rate limit is reached, or there are no credentials at the moment. Nothing was started.
    Throttled,
    /// The client token was used for another request.
    TokenUsed,
    /// The resource does not exist.
    NotFound,
    /// Somebody has to change something.
    Permanent,
    /// EC2 may or may not have done what was asked.
    Unclear,
}

impl fmt::Display for Ec2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) if self.message.is_empty() => f.write_str(code),
            Some(code) => write!(f, "{code}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E>> for Ec2Error {
    fn from(error: SdkError<E>) -> Self {
        if let SdkError::ServiceError(response) = &error {
            let status = response.raw().status().as_u16();
            let metadata = response.err().meta();
            if let Some(code) = metadata.code() {
                return Self::new(code, metadata.message().unwrap_or_default(), status);
            }
            let message = format!("EC2 answers with status {status}");
            let kind = kind_of("", status);
            return Self { code: None, message, kind };
        }
        let kind = match credentials_error(&error) {
            Some(
                CredentialsError::CredentialsNotLoaded(_)
                | CredentialsError::InvalidConfiguration(_),
            ) => Kind::Permanent,
            // The source of credentials does not answer. Without credentials nothing is sent.
            Some(_) => Kind::Throttled,
            None if matches!(error, SdkError::ConstructionFailure(_)) => Kind::Permanent,
            None => Kind::Unclear,
        };
        let advice = match kind {
            Kind::Permanent | Kind::Throttled => "; `stagely doctor aws` checks the credentials",
            _ => "",
        };
        Self {
            code: None,
            message: format!("cannot ask EC2: {}{advice}", ErrorChain(&error)),
            kind,
        }
    }
}

impl Ec2Error {
    fn new(code: &str, message: &str, status: u16) -> Self {
        let kind = kind_of(code, status);
        // The rest is long, and only AWS can decode it.
        let message = message.split(" Encoded authorization failure").next().unwrap_or_default();
        let mut message = message.trim_end_matches(['.', ' ']).to_owned();
        if let Some(advice) = advice(code) {
            let separator = if message.is_empty() { "" } else { "; " };
            message = format!("{message}{separator}{advice}");
        }
        Self { code: Some(code.to_owned()), message, kind }
    }

    /// EC2 has ended the instance at its launch.
    pub(super) fn at_launch(code: &str, message: &str) -> Self {
        // The message repeats the code.
        let message = message.strip_prefix(code).unwrap_or(message);
        Self::new(code, message.trim_start_matches([':', ' ']), 400)
    }

    pub(super) fn unclear(message: &str) -> Self {
        Self { code: None, message: message.to_owned(), kind: Kind::Unclear }
    }

    /// Whether the error is EC2's answer.
    pub(super) const fn is_answer(&self) -> bool {
        self.code.is_some()
    }

    /// The message without the code.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Whether the zone does not have the type of machine or volume, so that waiting is of no use.
    pub(super) fn is_of_zone(&self) -> bool {
        matches!(self.code(), Some("Unsupported" | "VolumeTypeNotAvailableInZone"))
    }

    /// Whether EC2 rejects the image.
    pub(super) fn is_of_image(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("InvalidAMIID"))
    }

    pub(super) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The error of a launch whose request for an instance has failed.
    pub(super) fn into_launch_error(self) -> LaunchError {
        match self.kind {
            Kind::Capacity => LaunchError::NoCapacity(self.into()),
            Kind::Throttled => LaunchError::Throttled { cause: self.into(), wait: None },
            Kind::NotFound | Kind::Permanent => LaunchError::Permanent(self.into()),
            Kind::TokenUsed | Kind::Unclear => LaunchError::Unclear(self.into()),
        }
    }

    /// The error of a launch whose search for an earlier instance has failed: an earlier request may have started
    /// one.
    pub(super) fn into_search_error(self) -> LaunchError {
        match self.kind {
            Kind::Permanent | Kind::NotFound => LaunchError::Permanent(self.into()),
            Kind::Throttled => LaunchError::Throttled { cause: self.into(), wait: None },
            Kind::Capacity | Kind::TokenUsed | Kind::Unclear => LaunchError::Unclear(self.into()),
        }
    }
}

impl Error for Ec2Error {}

impl From<Ec2Error> for ProviderError {
    fn from(error: Ec2Error) -> Self {
        Self::Failed(error.into())
    }
}

fn kind_of(code: &str, status: u16) -> Kind {
    match code {
        // `InsufficientInstanceCapacity` has status 500, so codes come first.
        "InsufficientInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacityOnHost"
        | "InsufficientReservedInstanceCapacity"
        | "ReservationCapacityExceeded"
        | "InsufficientVolumeCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientAddressCapacity"
        | "UnfulfillableCapacity"
        | "SpotMaxPriceTooLow"
        | "MaxSpotInstanceCountExceeded"
        | "VcpuLimitExceeded"
        | "InstanceLimitExceeded"
        | "VolumeLimitExceeded"
        | "ResourceCountExceeded"
        // The zone does not have this type of machine or volume.
        | "VolumeTypeNotAvailableInZone"
        | "Unsupported" => Kind::Capacity,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "EC2ThrottledException"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "ConcurrentTagAccess" => Kind::Throttled,
        "IdempotentParameterMismatch" | "IdempotentInstanceTerminated" => Kind::TokenUsed,
        code if code.ends_with(".NotFound") => Kind::NotFound,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable"
        | "RequestTimeout" => Kind::Unclear,
        _ if status == 429 => Kind::Throttled,
        _ if status >= 500 => Kind::Unclear,
        _ => Kind::Permanent,
    }
}

/// Advice for people where EC2's message gives none.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "UnauthorizedOperation" | "AccessDenied" => {
            "`stagely doctor aws` names what is missing and prints a policy"
        }
        "AuthFailure"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken" => {
            "AWS does not take these credentials, or this machine's clock is wrong"
        }
        "RequestExpired" | "ExpiredToken" => {
            "renew the credentials (`aws sso login`), and check this machine's clock"
        }
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => {
            "once for the account: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
        }
        "OptInRequired" => "the account has not accepted the terms of EC2 or of this image",
        "PendingVerification" => "AWS still verifies this new account",
        "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" | "InvalidAMIID.Unavailable" => {
            "check image-amd64 and image-arm64 in [aws]; images belong to one region"
        }
        "InvalidSubnetID.NotFound" | "InvalidSubnet" => "check `subnets` in [aws]",
        "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidSecurityGroupID.NotFound" => {
            "check `security-groups` in [aws]; they belong to one VPC"
        }
        "InvalidZone.NotFound" => "check `zones` in [aws]",
        "InvalidIamInstanceProfileArnNotFound"
        | "InvalidIamInstanceProfile"
        | "InvalidIamInstanceProfileName.NotFound" => "check `instance-profile` in [aws]",
        "VPCIdNotSpecified" | "DefaultVpcDoesNotExist" => {
            "the account has no default VPC: name `subnets` in [aws]"
        }
        "InvalidBlockDeviceMapping" => {
            "check `volume-gib` in [aws]: a volume cannot be smaller than its image"
        }
        "Client.InternalError" | "Client.InvalidKMSKey.InvalidState" => {
            "the volume is encrypted with a KMS key that cannot be used: enable the key, and let it allow core's \
             credentials kms:CreateGrant, kms:Decrypt, kms:DescribeKey and kms:GenerateDataKeyWithoutPlaintext"
        }
        "Client.VolumeLimitExceeded" => {
            "ask AWS for a higher limit of volumes, or lower builders.max-concurrent or aws.volume-gib"
        }
        "Client.InvalidSnapshot.NotFound" => {
            "a snapshot of the image is gone: check image-amd64 and image-arm64 in [aws]"
        }
        _ => return None,
    })
}

fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_before_status_and_a_server_error_is_unclear() {
        assert_eq!(Ec2Error::new("InsufficientInstanceCapacity", "", 500).kind, Kind::Capacity);
        assert_eq!(Ec2Error::new("InternalError", "", 500).kind, Kind::Unclear);
        assert_eq!(Ec2Error::new("Unknown", "", 503).kind, Kind::Unclear);
        assert_eq!(Ec2Error::new("Unknown", "", 400).kind, Kind::Permanent);
        assert_eq!(Ec2Error::new("InvalidInstanceID.NotFound", "", 400).kind, Kind::NotFound);
    }

    #[test]
    fn a_missing_permission_is_named_without_the_encoded_message() {
        let message = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/a is not \
                    authorized to perform: ec2:RunInstances. Encoded authorization failure message: AbCdEf";
        let error = Ec2Error::new("UnauthorizedOperation", message, 403).to_string();
        assert!(error.contains("ec2:RunInstances; `stagely doctor aws`"), "{error}");
        assert!(!error.contains("AbCdEf"), "{error}");
    }
}
