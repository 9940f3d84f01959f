package policy

import (
	"fmt"
	"strings"
)

// maxNamed is the maximum number of names that a fault lists.
const maxNamed = 20

// Unknown returns the text of a fault for a name that is not in names, which is sorted. what is the kind of the name,
// such as "key". The text suggests the most similar name, or lists the names if none is similar.
func Unknown(what, name string, names []string) string {
	best, least := "", 1<<30
	for _, candidate := range names {
		if n := edits(strings.ToLower(name), strings.ToLower(candidate)); n < least {
			best, least = candidate, n
		}
	}
	switch {
	case best != "" && least <= max(2, len(best)/2):
		return fmt.Sprintf("there is no %s %.64q; the nearest is %s", what, name, best)
	case len(names) == 0:
		return fmt.Sprintf("there is no %s %.64q, and none belongs here", what, name)
	case len(names) > maxNamed:
		return fmt.Sprintf("there is no %s %.64q; there are %s and %d others", what, name, strings.Join(names[:maxNamed],
			", "), len(names)-maxNamed)
	default:
		return fmt.Sprintf("there is no %s %.64q; use one of %s", what, name, strings.Join(names, ", "))
	}
}

// maxCompared is the maximum length of names that edits compares.
const maxCompared = 64

// edits returns how many bytes must be inserted, deleted or replaced to turn a into b. For long texts, it returns a
// large number.
func edits(a, b string) int {
	if len(a) > maxCompared || len(b) > maxCompared {
		return maxCompared + 1
	}
	above := make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replaced := above[j]
			if a[i] != b[j] {
				replaced++
			}
			row[j+1] = min(replaced, above[j+1]+1, row[j]+1)
		}
		above = row
	}
	return above[len(b)]
}
