package config

import (
	"fmt"
	"strings"
)

// unknown returns the error text for a name that is not in names, which is sorted. kind is "key" or "variable". The
// text suggests the most similar name, or lists all names if none is similar.
func unknown(kind, name string, names []string) string {
	if len(names) == 0 {
		return "there is no such " + kind + ", and none belongs here"
	}
	best, least := "", 1<<30
	for _, candidate := range names {
		d := distance(strings.ToLower(name), strings.ToLower(candidate))
		if strings.HasPrefix(candidate, name) || strings.HasPrefix(name, candidate) {
			d = min(d, 2) // a missing or additional word at the end counts as two edits at most
		}
		if d < least {
			best, least = candidate, d
		}
	}
	if least <= max(2, len(best)/2) {
		return fmt.Sprintf("there is no such %s; the nearest is %s", kind, best)
	}
	return fmt.Sprintf("there is no such %s; the nearest is %s, of %s", kind, best, strings.Join(names, ", "))
}

// distance returns the Levenshtein distance of a and b: the minimum number of bytes to insert, delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
