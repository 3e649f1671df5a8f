//! The table of a benchmark, and its statistics.

use comfy_table::{Table, presets};

/// One row of the table.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// The quantity.
    pub(crate) what: String,
    /// The value for Stagely.
    pub(crate) stagely: String,
    /// The value for the raw alternative.
    pub(crate) raw: String,
    pub(crate) ratio: String,
    /// The required value.
    pub(crate) aim: String,
    /// Whether the aim was met; `None` without an aim.
    pub(crate) is_met: Option<bool>,
}

/// Prints a benchmark's table, in Markdown.
pub(crate) fn print(rows: Vec<Row>) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["measured", "Stagely", "raw", "ratio", "aim", "met"]);
    for row in rows {
        let is_met = match row.is_met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        table.add_row([&row.what, &row.stagely, &row.raw, &row.ratio, &row.aim, is_met]);
    }
    println!("\n{table}\n");
}

/// The value below which `share` of all values lie.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a vector"
    )]
    let index = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Pairs of consecutive measurements.
#[derive(Debug, Default)]
pub(crate) struct Pairs(pub(crate) Vec<(f64, f64)>);

impl Pairs {
    /// The medians of the first and of the second values.
    pub(crate) fn medians(&self) -> (f64, f64) {
        let (first, second): (Vec<f64>, Vec<f64>) = self.0.iter().copied().unzip();
        (median(&first), median(&second))
    }

    /// The median of the pairs' ratios. A disturbance of the machine affects both values of a pair.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.0.iter().map(|(first, second)| first / second).collect::<Vec<_>>())
    }

    /// The median of the pairs' differences.
    pub(crate) fn difference(&self) -> f64 {
        median(&self.0.iter().map(|(first, second)| first - second).collect::<Vec<_>>())
    }
}
