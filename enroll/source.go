package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// sourcePoll is the interval at which a Source looks for a new credential.
const sourcePoll = time.Second

// Source provides the credential that an agent keeps in a directory, and follows its renewals. It only reads. A server
// or client uses it through [Source.GetCertificate], [Source.GetClientCertificate] and [Source.Roots].
type Source struct {
	holder
	path string
	log  *slog.Logger
}

// OpenSource reads the credential in a directory. If there is none yet, it returns ErrNoCredential.
func OpenSource(path string, log *slog.Logger) (*Source, error) {
	s := &Source{path: path, log: log}
	p, err := ReadPair(path)
	if err != nil {
		return nil, err
	}
	s.pair.Store(p)
	return s, nil
}

// Run checks the directory every second until the context ends, and calls changed, which may be nil, with each new
// pair. If a pair does not load, Run logs the error and keeps the previous one.
func (s *Source) Run(ctx context.Context, changed func(*Pair)) {
	ticker := time.NewTicker(sourcePoll)
	defer ticker.Stop()
	var seen, complained string
	for {
		name, err := os.Readlink(filepath.Join(s.path, currentName))
		if err == nil && name != seen {
			var p *Pair
			if p, err = ReadPair(s.path); err == nil {
				seen = name
				s.use(p, changed)
			}
		}
		if err != nil && complained != err.Error() {
			s.log.Error("reading the new credential failed, the previous one stays in use", "error", fmt.Sprint(err))
			complained = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// use puts a pair in use if it has another certificate than the current one.
func (s *Source) use(p *Pair, changed func(*Pair)) {
	if p.Certificate.Equal(s.Pair().Certificate) {
		return
	}
	s.pair.Store(p)
	if changed != nil {
		changed(p)
	}
}
