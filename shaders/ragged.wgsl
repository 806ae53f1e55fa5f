// Rows of x whose length is not a multiple of what is taken at a time.

// Whether codes or columns are missing at the end of the last streams.
override RAGGED: bool;

// Element `column` of the row of x that begins at `row`, 0 past its end.
fn element(row: u32, column: u32) -> f32 {
    if (RAGGED) {
        return select(0.0, x[row + min(column, weight.cols - 1u)], column < weight.cols);
    }
    return x[row + column];
}
