package revisions

import (
	"maps"
	"slices"
)

// Sources returns the sources whose CRLs are in memory.
func (f *Files) Sources() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.crls))
}
