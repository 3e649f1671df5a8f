//! `matrix`: lists of values → the combinations that a build is made in.

use std::collections::{BTreeMap, HashMap};

use super::fault::Fault;
use super::fields::{Field, read_value};
use super::problem::Collector;
use super::read::{distinct, limit};
use super::template::Template;
use super::values;

/// The most jobs of one build: those of every platform of every combination, and the merges.
pub const JOBS_MAX: usize = 64;

/// The most names of one matrix.
pub(super) const KEYS_MAX: usize = 16;

/// The most values of one name.
pub(super) const VALUES_MAX: usize = 256;

/// The most entries of `include` and of `exclude`.
pub(super) const ENTRIES_MAX: usize = 256;

/// The most combinations before `exclude`. More are counted, but not made.
const COMBINATIONS_MAX: u128 = 1024;

/// One combination of a build's matrix, or all that there is of a build without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The build's name, and each name and value of the combination: `app-node_version-18`.
    pub name: String,
    /// The combination: build arguments. Empty without a matrix, and never with one.
    pub values: BTreeMap<String, String>,
}

/// The build of which the matrix is one.
pub(super) struct Owner<'a> {
    pub(super) name: &'a str,
    pub(super) build_args: &'a BTreeMap<String, Template>,
    /// The jobs that each combination makes.
    pub(super) jobs_each: usize,
}

/// Reads a matrix; `None` where something is wrong with it.
pub(super) fn read(
    field: &Field<'_>,
    owner: &Owner<'_>,
    problems: &mut Collector,
) -> Option<Vec<Variant>> {
    let before = problems.count();
    let matrix = Matrix::read(field, owner, problems)?;
    if problems.count() > before {
        return None;
    }
    let combinations = matrix
        .combinations(owner, problems)
        .map_err(|fault| problems.add(field.at(), &*field.path, fault))
        .ok()?;
    let variants = combinations.iter().map(|combination| combination.variant(owner.name));
    let variants: Vec<_> = variants.collect();
    check_names(field, &variants, &combinations, problems);
    (problems.count() == before).then_some(variants)
}

fn check_names(
    field: &Field<'_>,
    variants: &[Variant],
    combinations: &[Combination],
    problems: &mut Collector,
) {
    let mut seen = HashMap::new();
    for (variant, combination) in variants.iter().zip(combinations) {
        if let Some(first) = seen.insert(&variant.name, combination) {
            let fault = Fault::SameVariant {
                name: variant.name.clone(),
                first: first.to_string(),
                second: combination.to_string(),
            };
            problems.add(field.at(), &*field.path, fault);
        }
    }
}

/// The matrix as it is written.
struct Matrix<'a> {
    axes: Vec<Axis<'a>>,
    include: Vec<Entry<'a>>,
    exclude: Vec<Entry<'a>>,
}

struct Axis<'a> {
    key: &'a str,
    values: Vec<String>,
}

/// An entry of `include` or `exclude`.
struct Entry<'a> {
    field: Field<'a>,
    pairs: Vec<(Field<'a>, String)>,
}

impl<'a> Matrix<'a> {
    fn read(field: &Field<'a>, owner: &Owner<'_>, problems: &mut Collector) -> Option<Self> {
        let Some(mut fields) = field.map(problems) else {
            let fault = field.wanted("a map of build arguments to lists of values", None);
            problems.add(field.at(), &*field.path, fault);
            return None;
        };
        let mut take = |key| {
            let index = fields.iter().position(|field| field.key == key)?;
            Some(fields.remove(index))
        };
        let (include, exclude) = (take("include"), take("exclude"));
        if fields.is_empty() && include.is_none() {
            problems.add(field.at(), &*field.path, Fault::EmptyMatrix);
        }
        limit(field, &mut fields, KEYS_MAX, problems);
        let axes: Vec<_> =
            fields.iter().filter_map(|field| Axis::read(field, owner, problems)).collect();
        let mut entries = |field: Option<Field<'a>>| {
            field.map(|field| Entry::read_all(&field, problems)).unwrap_or_default()
        };
        let matrix = Self { include: entries(include), exclude: entries(exclude), axes };
        matrix.check_keys(&fields, owner, problems);
        Some(matrix)
    }

    /// `axes` are the lists as they are written, also those with a mistake.
    fn check_keys(&self, axes: &[Field<'_>], owner: &Owner<'_>, problems: &mut Collector) {
        for (field, _) in self.include.iter().flat_map(|entry| &entry.pairs) {
            check_key(field, owner, problems);
        }
        for (field, _) in self.exclude.iter().flat_map(|entry| &entry.pairs) {
            let known = || axes.iter().map(|axis| axis.key);
            if known().all(|key| key != field.key) {
                let fault = Fault::unknown_matrix_key(field.key, known());
                problems.add(field.key_at, &*field.path, fault);
            }
        }
    }

    fn combinations(
        &self,
        owner: &Owner<'_>,
        problems: &mut Collector,
    ) -> Result<Vec<Combination>, Fault> {
        let count = |axis: &Axis<'_>| axis.values.len() as u128;
        let count = self.axes.iter().map(count).fold(1, u128::saturating_mul);
        if count > COMBINATIONS_MAX {
            return Err(Fault::TooManyCombinations { combinations: count, max: JOBS_MAX });
        }
        let mut combinations = self.product();
        self.take_out(&mut combinations, problems);
        self.add_to(&mut combinations);
        if combinations.is_empty() {
            return Err(Fault::NoCombinations);
        }
        let (combinations_count, each) = (combinations.len(), owner.jobs_each);
        let jobs = combinations_count * each;
        if jobs > JOBS_MAX {
            let combinations = combinations_count;
            return Err(Fault::TooManyJobs { jobs, combinations, each, max: JOBS_MAX });
        }
        Ok(combinations)
    }

    /// Every value with every value, the last name's changing first.
    fn product(&self) -> Vec<Combination> {
        if self.axes.is_empty() {
            return Vec::new();
        }
        let mut combinations = vec![Combination::default()];
        for axis in &self.axes {
            let with = |combination: &Combination, value: &String| {
                let mut pairs = combination.pairs.clone();
                pairs.push((axis.key.to_owned(), value.clone()));
                Combination { own: pairs.len(), pairs }
            };
            combinations = combinations
                .iter()
                .flat_map(|combination| axis.values.iter().map(|value| with(combination, value)))
                .collect();
        }
        combinations
    }

    fn take_out(&self, combinations: &mut Vec<Combination>, problems: &mut Collector) {
        let mut excluded = vec![false; combinations.len()];
        for entry in &self.exclude {
            let mut matched = false;
            for (combination, excluded) in combinations.iter().zip(&mut excluded) {
                if entry.pairs.iter().all(|(field, value)| combination.has(field.key, value)) {
                    (matched, *excluded) = (true, true);
                }
            }
            if !matched {
                problems.add(entry.field.at(), &*entry.field.path, Fault::ExcludesNothing);
            }
        }
        let mut excluded = excluded.into_iter();
        combinations.retain(|_| excluded.next() == Some(false));
    }

    /// As GitHub does it: an entry extends each combination of the lists whose own values it leaves
    /// as they are, and stands for itself where there is none.
    fn add_to(&self, combinations: &mut Vec<Combination>) {
        let of_lists = combinations.len();
        for entry in &self.include {
            let pairs = || entry.pairs.iter().map(|(field, value)| (field.key, &**value));
            let mut extends = false;
            for combination in &mut combinations[..of_lists] {
                if pairs().all(|(key, value)| combination.agrees(key, value)) {
                    extends = true;
                    pairs().for_each(|(key, value)| combination.set(key, value));
                }
            }
            if !extends {
                let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
                combinations.push(Combination { own: 0, pairs: pairs().map(owned).collect() });
            }
        }
    }
}

impl<'a> Axis<'a> {
    fn read(field: &Field<'a>, owner: &Owner<'_>, problems: &mut Collector) -> Option<Self> {
        check_key(field, owner, problems);
        let Some(mut items) = field.list() else {
            let hint = field.scalar().map(|_| "write `[…]` around it");
            problems.add(field.at(), &*field.path, field.wanted("a list of values", hint));
            return None;
        };
        if items.is_empty() {
            problems.add(field.at(), &*field.path, Fault::EmptyList { what: "value" });
        }
        limit(field, &mut items, VALUES_MAX, problems);
        Some(Self { key: field.key, values: distinct(&items, values::matrix_value, problems) })
    }
}

fn check_key(field: &Field<'_>, owner: &Owner<'_>, problems: &mut Collector) {
    if let Err(fault) = values::check_build_arg_name(field.key) {
        problems.add(field.key_at, &*field.path, fault);
    } else if owner.build_args.contains_key(field.key) {
        problems.add(field.key_at, &*field.path, Fault::SetTwice);
    }
}

impl<'a> Entry<'a> {
    fn read_all(field: &Field<'a>, problems: &mut Collector) -> Vec<Self> {
        let Some(mut items) = field.list() else {
            problems.add(field.at(), &*field.path, field.wanted("a list of combinations", None));
            return Vec::new();
        };
        if items.is_empty() {
            problems.add(field.at(), &*field.path, Fault::EmptyList { what: "combination" });
        }
        limit(field, &mut items, ENTRIES_MAX, problems);
        items.into_iter().filter_map(|item| Self::read(item, problems)).collect()
    }

    fn read(field: Field<'a>, problems: &mut Collector) -> Option<Self> {
        let Some(mut fields) = field.map(problems) else {
            let fault = field.wanted("a map of names to values", None);
            problems.add(field.at(), &*field.path, fault);
            return None;
        };
        if fields.is_empty() {
            problems.add(field.at(), &*field.path, Fault::EmptyList { what: "value" });
        }
        limit(&field, &mut fields, KEYS_MAX, problems);
        let pair = |field: Field<'a>| {
            let value = read_value(&field, values::matrix_value, problems)?;
            Some((field, value))
        };
        let pairs = fields.into_iter().filter_map(pair).collect();
        Some(Self { field, pairs })
    }
}

/// Names and values in their order.
#[derive(Default)]
struct Combination {
    pairs: Vec<(String, String)>,
    /// How many of them come from the lists; the others were included.
    own: usize,
}

impl Combination {
    fn has(&self, key: &str, value: &str) -> bool {
        self.pairs.iter().any(|(known, has)| known == key && has == value)
    }

    /// Whether setting `key` to `value` changes nothing that comes from the lists.
    fn agrees(&self, key: &str, value: &str) -> bool {
        self.pairs[..self.own].iter().all(|(known, has)| known != key || has == value)
    }

    fn set(&mut self, key: &str, value: &str) {
        match self.pairs.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.pairs.push((key.to_owned(), value.to_owned())),
        }
    }

    fn variant(&self, build: &str) -> Variant {
        let mut name = build.to_owned();
        for (key, value) in &self.pairs {
            name.push('-');
            name.push_str(&key.to_ascii_lowercase());
            name.push('-');
            name.extend(value.chars().map(tag_character));
        }
        Variant { name, values: self.pairs.iter().cloned().collect() }
    }
}

/// What a tag has in the place of `character`.
fn tag_character(character: char) -> char {
    match character.to_ascii_lowercase() {
        lower @ ('a'..='z' | '0'..='9' | '_' | '.' | '-') => lower,
        _ => '-',
    }
}

impl std::fmt::Display for Combination {
    /// `NODE_VERSION: 18, OS: alpine`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<_> =
            self.pairs.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        f.write_str(&pairs.join(", "))
    }
}
