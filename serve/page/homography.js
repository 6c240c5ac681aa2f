// Where a homography takes an image, as CSS says it. Matrices are 3 rows of 3, on columns (x, y, 1).

const times = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((sum, value, k) => sum + value * b[k][j], 0)));
const scaled = (s) => [[s, 0, 0], [0, s, 0], [0, 0, 1]];
const shifted = (by) => [[1, 0, by], [0, 1, by], [0, 0, 1]];

/**
 * A CSS transform from an image drawn at `from` CSS pixels a pixel to one drawn at `to`. The homography is
 * between pixel centres, the first at (0, 0); in CSS that is half a pixel from the corner.
 */
export function cssTransform(homography, from, to) {
  const model = times(scaled(to), times(shifted(0.5), times(homography, times(shifted(-0.5), scaled(1 / from)))));
  const [[a, b, c], [d, e, f], [g, h, i]] = model.map((row) => row.map((value) => value / model[2][2]));
  return `matrix3d(${[a, d, 0, g, b, e, 0, h, 0, 0, 1, 0, c, f, 0, i].join(",")})`;
}
