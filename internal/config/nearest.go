package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// unknown says that a key is none of those allowed, and which of them is meant, where one is near enough.
func unknown(key string, allowed map[string]reflect.Type) string {
	names := slices.Sorted(maps.Keys(allowed))
	if len(names) == 0 {
		return "there is no such key, and none belongs here"
	}
	best, least := "", 1<<30
	for _, name := range names {
		d := distance(strings.ToLower(key), name)
		if strings.HasPrefix(name, key) || strings.HasPrefix(key, name) {
			d = min(d, 2) // a word more or less
		}
		if d < least {
			best, least = name, d
		}
	}
	if least <= max(2, len(best)/2) {
		return fmt.Sprintf("there is no such key; the nearest is %s", best)
	}
	return fmt.Sprintf("there is no such key; the nearest is %s, of %s", best, strings.Join(names, ", "))
}

// distance counts the characters to insert, drop or replace to make b of a (Levenshtein).
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
