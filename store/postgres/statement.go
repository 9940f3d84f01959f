package postgres

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// translated has statements as PostgreSQL takes them, by their text in package tables. It is emptied when it is full: some
// statements have conditions for each open bulk revocation.
var translated = struct {
	sync.RWMutex
	texts map[string]string
}{texts: map[string]string{}}

const maxTranslated = 4 * statements

// plan has hints about plans: the order of a join is for SQLite. A plus sign in a comment is for PostgreSQL, which then uses no
// index to look up the column after it. It has no statistics of new tables, and so does not know that another index has fewer
// rows for a value.
var plan = strings.NewReplacer(" CROSS JOIN ", " JOIN ", "/*+*/", "+")

var indexedBy = regexp.MustCompile(` INDEXED BY [a-z_]+`)

// translate returns a statement with the parameters of PostgreSQL, and without hints for SQLite: ? becomes $1, $2 and so on,
// and ?2 becomes $2.
func translate(statement string) string {
	if have, ok := recall(statement); ok {
		return have
	}
	have := parameters(indexedBy.ReplaceAllString(plan.Replace(statement), ""))
	remember(statement, have)
	return have
}

// recall returns what remember was called with.
func recall(statement string) (text string, ok bool) {
	translated.RLock()
	defer translated.RUnlock()
	text, ok = translated.texts[statement]
	return text, ok
}

func remember(statement, text string) {
	translated.Lock()
	defer translated.Unlock()
	if len(translated.texts) >= maxTranslated {
		clear(translated.texts)
	}
	translated.texts[statement] = text
}

func parameters(text string) string {
	var b strings.Builder
	quoted, n := false, 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '\'' {
			quoted = !quoted
		}
		if c != '?' || quoted {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('$')
		if i+1 < len(text) && '0' <= text[i+1] && text[i+1] <= '9' {
			continue // the number follows
		}
		n++
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}
