//! What the previews of a machine have on the Docker engine.

use std::process::Command;

/// The ids and names of the containers, volumes and networks of `machine`.
pub fn on_engine(machine: &str) -> Vec<String> {
    let all = kinds(machine).into_iter().flat_map(|(list, _)| listed(&list));
    all.collect()
}

/// Removes them.
pub fn remove_from_engine(machine: &str) {
    for (list, remove) in kinds(machine) {
        let names = listed(&list);
        if !names.is_empty() {
            let _ = Command::new("docker").args(remove).args(names).output();
        }
    }
}

/// The commands that list and remove each kind of things.
fn kinds(machine: &str) -> [(Vec<String>, &'static [&'static str]); 3] {
    let list = |words: &[&str]| {
        let words = words.iter().map(ToString::to_string);
        words.chain([format!("--filter=label=stagely.machine={machine}")]).collect()
    };
    [
        (list(&["ps", "--all", "--quiet"]), &["rm", "--force", "--volumes"]),
        (list(&["volume", "ls", "--quiet"]), &["volume", "rm", "--force"]),
        (list(&["network", "ls", "--quiet"]), &["network", "rm"]),
    ]
}

fn listed(list: &[String]) -> Vec<String> {
    let output = Command::new("docker").args(list).output().unwrap();
    assert!(output.status.success(), "docker {list:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
