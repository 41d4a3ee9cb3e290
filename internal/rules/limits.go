package rules

// Bounds on what rule files may ask for. Each is far above what the largest
// community packs use; going over one is an error that names it.
const (
	maxFileBytes  = 4 << 20 // of one rule file
	maxTotalBytes = 32 << 20
	maxItems      = 20_000  // rules, macros and lists of all files
	maxCondition  = 256_000 // bytes of one condition after append
	maxDepth      = 200     // nesting of a condition, macros included
	maxNodes      = 50_000  // comparisons and operators of one rule, macros expanded
	maxTotalNodes = 2_000_000
	maxListItems  = 200_000 // of one list, lists in lists expanded
	maxTotalItems = 1_000_000
	maxPattern    = 4_000 // bytes of a regular expression or a glob
	maxRegexNodes = 2_000 // of one, its repetitions written out
	maxTotalRegex = 500_000
	maxErrors     = 200 // reported at most
)
