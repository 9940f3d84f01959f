package output

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// tableSample is the number of rows that determine the column widths. Later rows are printed immediately.
	tableSample = 100
	// maxColumn is the maximum width that a column is padded to. Longer cells are printed in full and shift their row.
	maxColumn = 60
)

// table prints rows in columns. It buffers at most tableSample of them.
type table struct {
	out    *bufio.Writer
	sample [][]string // rows buffered until the widths are known
	widths []int      // nil until they are known
}

func newTable(out io.Writer) *table { return &table{out: bufio.NewWriter(out)} }

func (t *table) row(cells []string) error {
	shown := make([]string, len(cells))
	for i, cell := range cells {
		shown[i] = plain(cell)
	}
	if t.widths != nil {
		return t.print(shown)
	}
	if t.sample = append(t.sample, shown); len(t.sample) < tableSample {
		return nil
	}
	return t.flush()
}

// flush computes the widths from the buffered rows, and prints these.
func (t *table) flush() error {
	t.widths = []int{}
	for _, row := range t.sample {
		for i, cell := range row {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], min(utf8.RuneCountInString(cell), maxColumn))
		}
	}
	for _, row := range t.sample {
		if err := t.print(row); err != nil {
			return err
		}
	}
	t.sample = nil
	return nil
}

func (t *table) print(row []string) error {
	for i, cell := range row {
		if i < len(row)-1 {
			width := 0
			if i < len(t.widths) {
				width = t.widths[i]
			}
			cell += strings.Repeat(" ", max(width-utf8.RuneCountInString(cell), 0)+2)
		}
		if _, err := t.out.WriteString(cell); err != nil {
			return err
		}
	}
	return t.out.WriteByte('\n')
}

func (t *table) close() error {
	if err := t.flush(); err != nil {
		return err
	}
	return t.out.Flush()
}

// plain escapes all characters except printable ASCII, because a terminal could display them misleadingly.
func plain(cell string) string {
	if !strings.ContainsFunc(cell, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return cell
	}
	var b strings.Builder
	for _, c := range cell {
		if c >= 0x20 && c <= 0x7e {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		}
	}
	return b.String()
}

// Pair formats a name and a value that a user entered, as part of a list with commas. Different pairs give different
// texts.
func Pair(name, value string) string { return quoted(name) + "=" + quoted(value) }

// quoted quotes a text that would be ambiguous in a list of pairs.
func quoted(text string) string {
	ascii := strconv.QuoteToASCII(text)
	if len(ascii) > len(text)+2 || strings.ContainsAny(text, ",=") || strings.TrimSpace(text) != text || strings.Contains(text, "  ") {
		return ascii
	}
	return text
}
