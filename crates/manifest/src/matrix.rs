//! `matrix`: lists of values → the combinations that a build is made in.

use std::collections::{BTreeMap, HashMap};

use super::fields::{Field, read_value};
use super::limits::{
    COMBINATIONS_MAX, JOBS_MAX, MATRIX_ENTRIES_MAX, MATRIX_KEYS_MAX, MATRIX_VALUES_MAX,
};
use super::lists::{self, distinct, limit};
use super::manifest::Variant;
use super::mistake::Mistake;
use super::problem::Collector;
use super::template::Template;
use super::values;

/// The build that owns the matrix.
pub(super) struct Owner<'a> {
    pub(super) name: &'a str,
    pub(super) build_args: &'a BTreeMap<String, Template>,
    /// The number of jobs of each combination.
    pub(super) jobs_each: usize,
}

/// Reads a matrix; `None` if it has a mistake.
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
        .map_err(|mistake| problems.add(field.at(), &*field.path, mistake))
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
            let mistake = Mistake::SameVariant {
                name: variant.name.clone(),
                first: first.to_string(),
                second: combination.to_string(),
            };
            problems.add(field.at(), &*field.path, mistake);
        }
    }
}

/// The matrix as written.
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
            let mistake = field.wanted("a map of build arguments to lists of values", None);
            problems.add(field.at(), &*field.path, mistake);
            return None;
        };
        let mut take = |key| {
            let index = fields.iter().position(|field| field.key == key)?;
            Some(fields.remove(index))
        };
        let (include, exclude) = (take("include"), take("exclude"));
        if fields.is_empty() && include.is_none() {
            problems.add(field.at(), &*field.path, Mistake::EmptyMatrix);
        }
        limit(field, &mut fields, MATRIX_KEYS_MAX, problems);
        let axes: Vec<_> =
            fields.iter().filter_map(|field| Axis::read(field, owner, problems)).collect();
        let mut entries = |field: Option<Field<'a>>| {
            field.map(|field| Entry::read_all(&field, problems)).unwrap_or_default()
        };
        let matrix = Self { include: entries(include), exclude: entries(exclude), axes };
        matrix.check_keys(&fields, owner, problems);
        Some(matrix)
    }

    /// Checks the names in `include` and `exclude`. `axes` are all lists, including those with mistakes.
    fn check_keys(&self, axes: &[Field<'_>], owner: &Owner<'_>, problems: &mut Collector) {
        for (field, _) in self.include.iter().flat_map(|entry| &entry.pairs) {
            check_key(field, owner, problems);
        }
        for (field, _) in self.exclude.iter().flat_map(|entry| &entry.pairs) {
            let known = || axes.iter().map(|axis| axis.key);
            if known().all(|key| key != field.key) {
                let mistake = Mistake::unknown_matrix_key(field.key, known());
                problems.add(field.key_at, &*field.path, mistake);
            }
        }
    }

    fn combinations(
        &self,
        owner: &Owner<'_>,
        problems: &mut Collector,
    ) -> Result<Vec<Combination>, Mistake> {
        let count = |axis: &Axis<'_>| axis.values.len() as u128;
        let count = self.axes.iter().map(count).fold(1, u128::saturating_mul);
        if count > COMBINATIONS_MAX {
            return Err(Mistake::TooManyCombinations { combinations: count, max: JOBS_MAX });
        }
        let mut combinations = self.product();
        self.exclude(&mut combinations, problems);
        self.include(&mut combinations);
        if combinations.is_empty() {
            return Err(Mistake::NoCombinations);
        }
        let (combinations_count, each) = (combinations.len(), owner.jobs_each);
        let jobs = combinations_count * each;
        if jobs > JOBS_MAX {
            let combinations = combinations_count;
            return Err(Mistake::TooManyJobs { jobs, combinations, each, max: JOBS_MAX });
        }
        Ok(combinations)
    }

    /// The Cartesian product of the lists. The last list varies fastest.
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

    fn exclude(&self, combinations: &mut Vec<Combination>, problems: &mut Collector) {
        let mut excluded = vec![false; combinations.len()];
        for entry in &self.exclude {
            let mut matched = false;
            for (combination, excluded) in combinations.iter().zip(&mut excluded) {
                if entry.pairs.iter().all(|(field, value)| combination.has(field.key, value)) {
                    (matched, *excluded) = (true, true);
                }
            }
            if !matched {
                problems.add(entry.field.at(), &*entry.field.path, Mistake::ExcludesNothing);
            }
        }
        let mut excluded = excluded.into_iter();
        combinations.retain(|_| excluded.next() == Some(false));
    }

    /// Applies `include` as GitHub does: an entry extends each combination of the lists that it does not
    /// contradict, and becomes a combination of its own if there is none.
    fn include(&self, combinations: &mut Vec<Combination>) {
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
        let mut items = lists::open(field, "a list of values", problems)?;
        if items.is_empty() {
            problems.add(field.at(), &*field.path, Mistake::EmptyList { what: "value" });
        }
        limit(field, &mut items, MATRIX_VALUES_MAX, problems);
        Some(Self { key: field.key, values: distinct(&items, values::matrix_value, problems) })
    }
}

fn check_key(field: &Field<'_>, owner: &Owner<'_>, problems: &mut Collector) {
    if let Err(mistake) = values::check_variable_name(field.key, values::BUILD_ARG_NAME) {
        problems.add(field.key_at, &*field.path, mistake);
    } else if owner.build_args.contains_key(field.key) {
        problems.add(field.key_at, &*field.path, Mistake::SetTwice { other: "build_args" });
    }
}

impl<'a> Entry<'a> {
    fn read_all(field: &Field<'a>, problems: &mut Collector) -> Vec<Self> {
        let Some(mut items) = field.list() else {
            problems.add(field.at(), &*field.path, field.wanted("a list of combinations", None));
            return Vec::new();
        };
        if items.is_empty() {
            problems.add(field.at(), &*field.path, Mistake::EmptyList { what: "combination" });
        }
        limit(field, &mut items, MATRIX_ENTRIES_MAX, problems);
        items.into_iter().filter_map(|item| Self::read(item, problems)).collect()
    }

    fn read(field: Field<'a>, problems: &mut Collector) -> Option<Self> {
        let Some(mut fields) = field.map(problems) else {
            let mistake = field.wanted("a map of names to values", None);
            problems.add(field.at(), &*field.path, mistake);
            return None;
        };
        if fields.is_empty() {
            problems.add(field.at(), &*field.path, Mistake::EmptyList { what: "value" });
        }
        limit(&field, &mut fields, MATRIX_KEYS_MAX, problems);
        let pair = |field: Field<'a>| {
            let value = read_value(&field, values::matrix_value, problems)?;
            Some((field, value))
        };
        let pairs = fields.into_iter().filter_map(pair).collect();
        Some(Self { field, pairs })
    }
}

/// Names and values of one combination, in their order.
#[derive(Default)]
struct Combination {
    pairs: Vec<(String, String)>,
    /// The number of pairs that come from the lists; `include` added the others.
    own: usize,
}

impl Combination {
    fn has(&self, key: &str, value: &str) -> bool {
        self.pairs.iter().any(|(known, has)| known == key && has == value)
    }

    /// Whether setting `key` to `value` changes no value that comes from the lists.
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

/// The character of a tag that stands for `character`.
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
