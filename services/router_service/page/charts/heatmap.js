// A matrix as coloured cells: rows and columns by name, what it measures in the key below.
import { figure as written } from "../format.js";
import { html } from "../html.js";
import { DIVERGING, SEQUENTIAL } from "../palette.js";
import { Figure, FRAME } from "./figure.js";
import { withRamp } from "./key.js";

const CELL = { least: 9, square: 46, widest: 110, tallest: 30 };
const ROOM_FOR_TEXT = 34;
const LETTER = 6.6;

/**
 * `matrix[row][column]`, null where there is nothing. `isSigned` centres the colours on zero; `marks` are cells
 * [row, column] to be pointed out; `extra` gives further columns of the table by cell: {names, of(row, column)}.
 */
export function Heatmap({ title, caption, summary, name, matrix, rowNames, columnNames, rowLabel, columnLabel, valueLabel, isSigned = false, domain, marks = [], extra, keys, format = written, children }) {
  const cells = matrix.flatMap((row, i) => row.map((value, j) => ({ row: rowNames[i], column: columnNames[j], value, i, j })));
  const draw = ({ Plot, d3, width, isDark }) => {
    const [low, high] = domain ?? extent(cells, isSigned);
    const colour = isSigned
      ? d3.scaleSequential([low, high], d3[`interpolate${DIVERGING}`])
      : d3.scaleSequential([low, high], d3[`interpolate${SEQUENTIAL[0].toUpperCase()}${SEQUENTIAL.slice(1)}`]);
    const left = Math.min(150, 30 + LETTER * Math.max(...rowNames.map((text) => String(text).length)));
    const cell = Math.max(CELL.least, Math.min(rowNames.length === columnNames.length ? CELL.square : CELL.widest, (width - left - 16) / columnNames.length));
    const tilted = Math.max(...columnNames.map((text) => String(text).length)) * LETTER > cell;
    const every = Math.ceil(19 / cell);
    const ticks = columnNames.filter((_, index) => index % every === 0);
    const bottom = tilted ? 26 + Math.min(90, 5 * Math.max(...columnNames.map((text) => String(text).length))) : 40;
    // A square matrix has square cells; one of few rows is flat.
    const tall = rowNames.length === columnNames.length ? Math.min(cell, CELL.square) : Math.max(Math.min(cell, CELL.tallest), rowNames.length > 40 ? CELL.least : 18);
    const shown = new Set(marks.map(([i, j]) => `${i},${j}`));
    const svg = Plot.plot({
      ...FRAME, width: left + 16 + cell * columnNames.length, height: 8 + bottom + tall * rowNames.length, marginLeft: left, marginRight: 16, marginTop: 8, marginBottom: bottom,
      x: { domain: columnNames, label: columnLabel, ticks, tickRotate: tilted ? -45 : 0, tickSize: 0, padding: 0 },
      y: { domain: rowNames, label: null, tickSize: 0, padding: 0 },
      color: { type: "identity" },
      marks: [
        Plot.cell(cells, { x: "column", y: "row", fill: (d) => (d.value === null ? "none" : colour(d.value)), inset: cell > 14 ? 0.5 : 0, title: (d) => `${rowLabel} ${d.row}, ${columnLabel} ${d.column}: ${d.value === null ? "nothing" : format(d.value)}` }),
        Plot.cell(cells.filter((d) => shown.has(`${d.i},${d.j}`)), { x: "column", y: "row", fill: "none", stroke: isDark ? "#fff" : "#000", strokeWidth: 1.5, inset: 1.5 }),
        cell >= ROOM_FOR_TEXT ? Plot.text(cells.filter((d) => d.value !== null), { x: "column", y: "row", text: (d) => format(d.value), fill: (d) => (d3.lab(colour(d.value)).l > 58 ? "#111" : "#fff"), fontSize: 11 }) : null,
      ],
    });
    return withRamp(svg, d3, { label: valueLabel, colour, domain: isSigned ? [low, 0, high] : [low, high], format, left: Math.min(left, 60) });
  };
  const rows = cells.filter((d) => d.value !== null).map((d) => [d.row, d.column, d.value, ...(extra?.of(d.i, d.j) ?? [])]);
  return html`<${Figure} title=${title} caption=${caption} summary=${summary} name=${name} draw=${draw} keys=${keys} columns=${[rowLabel, columnLabel, valueLabel, ...(extra?.names ?? [])]} rows=${rows}>${children}<//>`;
}

function extent(cells, isSigned) {
  const values = cells.map((d) => d.value).filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 0)];
  if (!isSigned) return [low, high || 1];
  const most = Math.max(-low, high) || 1;
  return [-most, most];
}
