//! Tables on the terminal: columns without rules, for easy copying.

use comfy_table::{ContentArrangement, Table, presets};
use console::{Term, measure_text_width};

/// The columns of space between two columns.
const GAP: usize = 2;

/// Formats a table with a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header).add_rows(rows);
    text(table)
}

/// A column that can be dropped from a narrow table.
pub(super) struct Column {
    pub(super) header: &'static str,
    /// The column with the highest rank is dropped first. A column without a rank is never dropped.
    pub(super) rank: Option<u8>,
    pub(super) cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| measure_text_width(cell));
        cells.chain([self.header.len()]).max().unwrap_or_default()
    }
}

/// Formats a table with as many of `columns` as fit into `width`, if there is one. Drops empty columns.
pub(super) fn fitted(mut columns: Vec<Column>, width: Option<usize>) -> String {
    columns
        .retain(|column| column.rank.is_none() || column.cells.iter().any(|cell| !cell.is_empty()));
    while let Some(width) = width {
        let gaps = columns.len().saturating_sub(1) * GAP;
        let is_too_wide = columns.iter().map(Column::width).sum::<usize>() + gaps > width;
        let last =
            columns.iter().enumerate().filter_map(|(at, column)| Some((column.rank?, at))).max();
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

/// The width of the terminal; `None` if standard output is not a terminal.
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
    fn columns_that_do_not_fit_are_dropped_by_rank() {
        let header = |width| fitted(columns(), width).lines().next().unwrap().to_owned();
        assert_eq!(header(None), "NAME  NOTE   LONG");
        assert_eq!(header(Some(24)), "NAME  NOTE   LONG");
        assert_eq!(header(Some(23)), "NAME  NOTE");
        assert_eq!(header(Some(8)), "NAME");
        assert_eq!(header(Some(1)), "NAME");
    }
}
