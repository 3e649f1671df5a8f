//! The providers of one core.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use stagely_state::ProviderName;
use stagely_state::ids::CoreId;

use crate::{Provider, ProviderTables};

/// The providers that the configuration names, and those that still have machines.
#[derive(Clone, Default)]
pub struct Providers(BTreeMap<ProviderName, Arc<dyn Provider>>);

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl FromIterator<(ProviderName, Arc<dyn Provider>)> for Providers {
    fn from_iter<I: IntoIterator<Item = (ProviderName, Arc<dyn Provider>)>>(providers: I) -> Self {
        Self(providers.into_iter().collect())
    }
}

impl Providers {
    /// Creates the providers called `names`. They tag machines with `core_id`. Local providers keep their files in
    /// `data_dir`.
    ///
    /// # Errors
    /// The table of a provider lacks something.
    pub async fn new(
        names: &BTreeSet<ProviderName>,
        tables: ProviderTables<'_>,
        core_id: &CoreId,
        data_dir: &Path,
    ) -> anyhow::Result<Self> {
        let mut providers = Vec::new();
        for name in names {
            let provider = tables.create(*name, core_id, data_dir).await;
            providers
                .push((*name, provider.with_context(|| format!("cannot use provider {name}"))?));
        }
        Ok(providers.into_iter().collect())
    }

    /// These providers and `others`.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    pub fn get(&self, name: ProviderName) -> Option<&Arc<dyn Provider>> {
        self.0.get(&name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ProviderName, &Arc<dyn Provider>)> {
        self.0.iter().map(|(name, provider)| (*name, provider))
    }
}
