//! The `stagely.toml` of a test: its own settings, completed by the defaults of all tests.

/// The TOML in `settings`, completed by `defaults`.
pub fn with_defaults(settings: &str, defaults: toml::Table) -> toml::Table {
    let mut table = toml::from_str(settings).unwrap();
    add_missing(&mut table, defaults);
    table
}

fn add_missing(table: &mut toml::Table, defaults: toml::Table) {
    for (key, default) in defaults {
        match (table.get_mut(&key), default) {
            (Some(toml::Value::Table(table)), toml::Value::Table(defaults)) => {
                add_missing(table, defaults);
            }
            (Some(_), _) => {}
            (None, default) => {
                table.insert(key, default);
            }
        }
    }
}
