//! Tables for people: columns without lines, so that they can be cut and pasted.

use comfy_table::{ContentArrangement, Table, presets};
use console::{Term, measure_text_width};

/// Between two columns.
const GAP: usize = 2;

/// A table with a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header).add_rows(rows);
    text(table)
}

/// A column that may be left out.
pub(super) struct Column {
    /// What it is called.
    pub(super) header: &'static str,
    /// Of the columns that do not fit, the one with the highest rank goes first; one without stays.
    pub(super) rank: Option<u8>,
    /// A cell for each row.
    pub(super) cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| measure_text_width(cell));
        cells.chain([self.header.len()]).max().unwrap_or_default()
    }
}

/// A table of as many of `columns` as fit into `width`, where there is one. Empty columns are left out.
pub(super) fn fitted(mut columns: Vec<Column>, width: Option<usize>) -> String {
    columns.retain(|column| column.rank.is_none() || column.cells.iter().any(|it| !it.is_empty()));
    while let Some(width) = width {
        let gaps = columns.len().saturating_sub(1) * GAP;
        let is_too_wide = columns.iter().map(Column::width).sum::<usize>() + gaps > width;
        let last = columns.iter().enumerate().filter_map(|(at, it)| Some((it.rank?, at))).max();
        match last {
            Some((_, at)) if is_too_wide => drop(columns.remove(at)),
            _ => break,
        }
    }
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or_default();
    let cell = |column: &Column, row: usize| column.cells.get(row).cloned().unwrap_or_default();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.header));
    table.add_rows((0..rows).map(|row| columns.iter().map(move |column| cell(column, row))));
    text(table)
}

/// The width of the terminal that standard output is; `None` where it is none.
pub(super) fn terminal_width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}

fn text(mut table: Table) -> String {
    let padding = u16::try_from(GAP).unwrap_or_default();
    for column in table.column_iter_mut() {
        column.set_padding((0, padding));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let column = |header, rank, cells: [&str; 2]| Column {
            header,
            rank,
            cells: cells.map(str::to_owned).to_vec(),
        };
        vec![
            column("NAME", None, ["one", "two"]),
            column("NOTE", Some(1), ["seven", ""]),
            column("LONG", Some(2), ["a long cell", "x"]),
            column("EMPTY", Some(0), ["", ""]),
        ]
    }

    #[test]
    fn what_does_not_fit_goes_by_rank_and_what_has_none_stays() {
        let header = |width| fitted(columns(), width).lines().next().unwrap().to_owned();
        assert_eq!(header(None), "NAME  NOTE   LONG");
        assert_eq!(header(Some(24)), "NAME  NOTE   LONG");
        assert_eq!(header(Some(23)), "NAME  NOTE");
        assert_eq!(header(Some(8)), "NAME");
        assert_eq!(header(Some(1)), "NAME");
    }
}
