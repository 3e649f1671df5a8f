//! Binds a data folder to the host and the path at which it is used.
//!
//! The database holds the id that marks this core's machines at the providers. A second core with a copy of it would
//! consider the machines of the first its own and end those that it has no records of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Beside the database. Backups may leave it out.
pub(super) const FILE: &str = "bound.json";

/// Files whose content differs from host to host, also between a virtual machine and its clone. Those that only root
/// can read are missing if core is not root.
const HOST_FACTS: [(&str, &str); 3] = [
    ("machine-id", "/etc/machine-id"),
    ("product-uuid", "/sys/class/dmi/id/product_uuid"),
    // The instance's id at EC2.
    ("board-asset-tag", "/sys/class/dmi/id/board_asset_tag"),
];

/// The host and the path of a data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    path: PathBuf,
    host: BTreeMap<String, String>,
}

/// A data folder that was used at another place before.
#[derive(Debug, Error)]
pub(crate) enum BindingError {
    #[error("the file {FILE} cannot be used")]
    Io(#[from] io::Error),
    #[error(
        "this data folder was used {before} before. If it is a copy and the other core still runs, both would end each \
         other's machines: start this core with an empty folder. If the folder was moved or restored and the other core \
         is gone, start once with `stagely core --moved`"
    )]
    OtherLocation { before: String },
}

impl Binding {
    /// That of the folder at `path` on this host.
    ///
    /// # Errors
    /// The path cannot be resolved.
    pub(super) fn here(path: &Path) -> io::Result<Self> {
        let read = |(name, file): (&str, &str)| {
            let text = fs::read_to_string(file).ok()?;
            Some((name.to_owned(), text.trim().to_owned())).filter(|(_, text)| !text.is_empty())
        };
        Ok(Self {
            path: path.canonicalize()?,
            host: HOST_FACTS.into_iter().filter_map(read).collect(),
        })
    }

    /// Reads the stored binding of the folder at `path`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn stored(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path.join(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the binding in its folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn store(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let (file, new) = (self.path.join(FILE), self.path.join("bound.json.new"));
        fs::write(&new, text)?;
        fs::rename(new, file)
    }

    /// Checks that the folder was used here before. `stored` is `None` if the file is missing.
    ///
    /// # Errors
    /// [`BindingError::OtherLocation`]
    pub(super) fn check(&self, stored: Option<&Self>) -> Result<(), BindingError> {
        let other = |before: String| Err(BindingError::OtherLocation { before });
        let Some(stored) = stored else { return other("at an unknown location".to_owned()) };
        if stored.path != self.path {
            return other(format!("at {}", stored.path.display()));
        }
        // Only facts that both have are compared.
        let differs =
            |(name, value): (&String, &String)| self.host.get(name).is_some_and(|own| own != value);
        if stored.host.iter().any(differs) { other("on another host".to_owned()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(path: &str, machine_id: &str) -> Binding {
        let host = BTreeMap::from([("machine-id".to_owned(), machine_id.to_owned())]);
        Binding { path: path.into(), host }
    }

    #[test]
    fn a_folder_is_only_used_where_it_was() {
        let here = binding("/var/lib/core", "1");
        here.check(Some(&here)).unwrap();
        let without_facts = Binding { host: BTreeMap::new(), ..here.clone() };
        here.check(Some(&without_facts)).unwrap();
        without_facts.check(Some(&here)).unwrap();
        for stored in [None, Some(binding("/srv/copy", "1")), Some(binding("/var/lib/core", "2"))] {
            let error = here.check(stored.as_ref()).unwrap_err().to_string();
            assert!(error.contains("--moved"), "{error}");
        }
    }

    #[test]
    fn a_stored_binding_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let here = Binding::here(folder.path()).unwrap();
        assert_eq!(Binding::stored(folder.path()).unwrap(), None);
        here.store().unwrap();
        assert_eq!(Binding::stored(folder.path()).unwrap(), Some(here));
    }
}
