//! The instance types of EC2 that we know, and those of each size by default.

use stagely_protocol::Arch::{Amd64, Arm64};
use stagely_state::Fleet;

use crate::catalog::{DefaultTypes, KnownType};

/// Prices of us-east-1, Linux, November 2026. Source: Amazon EC2 on-demand pricing.
pub(crate) const KNOWN: &[KnownType] = &[
    ("t3.small", Amd64, 20_800),
    ("t3.medium", Amd64, 41_600),
    ("t3.large", Amd64, 83_200),
    ("t3.xlarge", Amd64, 166_400),
    ("t3.2xlarge", Amd64, 332_800),
    ("c5.xlarge", Amd64, 170_000),
    ("c5.2xlarge", Amd64, 340_000),
    ("c5.4xlarge", Amd64, 680_000),
    ("c5a.xlarge", Amd64, 154_000),
    ("c5a.2xlarge", Amd64, 308_000),
    ("c5a.4xlarge", Amd64, 616_000),
    ("c6i.xlarge", Amd64, 170_000),
    ("c6i.2xlarge", Amd64, 340_000),
    ("c6i.4xlarge", Amd64, 680_000),
    ("c6a.xlarge", Amd64, 153_000),
    ("c6a.2xlarge", Amd64, 306_000),
    ("c6a.4xlarge", Amd64, 612_000),
    ("c7i.xlarge", Amd64, 178_500),
    ("c7i.2xlarge", Amd64, 357_000),
    ("c7i.4xlarge", Amd64, 714_000),
    ("r5.large", Amd64, 126_000),
    ("r5.xlarge", Amd64, 252_000),
    ("r5.2xlarge", Amd64, 504_000),
    ("r5.4xlarge", Amd64, 1_008_000),
    ("t4g.small", Arm64, 16_800),
    ("t4g.medium", Arm64, 33_600),
    ("t4g.large", Arm64, 67_200),
    ("t4g.xlarge", Arm64, 134_400),
    ("t4g.2xlarge", Arm64, 268_800),
    ("c6g.xlarge", Arm64, 136_000),
    ("c6g.2xlarge", Arm64, 272_000),
    ("c6g.4xlarge", Arm64, 544_000),
    ("c7g.xlarge", Arm64, 145_000),
    ("c7g.2xlarge", Arm64, 290_000),
    ("c7g.4xlarge", Arm64, 580_000),
    ("r6g.large", Arm64, 100_800),
    ("r6g.xlarge", Arm64, 201_600),
    ("r6g.2xlarge", Arm64, 403_200),
    ("r6g.4xlarge", Arm64, 806_400),
];

pub(crate) const DEFAULTS: &[DefaultTypes] = &[
    (Fleet::Builder, Amd64, ["t3.small", "c5.xlarge", "c5.2xlarge", "c5.4xlarge"]),
    (Fleet::Builder, Arm64, ["t4g.small", "c6g.xlarge", "c6g.2xlarge", "c6g.4xlarge"]),
    (Fleet::Preview, Amd64, ["t3.small", "t3.medium", "t3.large", "t3.xlarge"]),
    (Fleet::Preview, Arm64, ["t4g.small", "t4g.medium", "t4g.large", "t4g.xlarge"]),
    (Fleet::Tester, Amd64, ["r5.large", "r5.xlarge", "r5.2xlarge", "r5.4xlarge"]),
    (Fleet::Tester, Arm64, ["r6g.large", "r6g.xlarge", "r6g.2xlarge", "r6g.4xlarge"]),
];
