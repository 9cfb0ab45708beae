"""Texts of our own that the reference tokenizers are trained on and tried with."""
CORPUS = '''Once upon a time, there was a little fox who lived in the forest. The fox liked to count: 1, 2, 3, 45, 678.
"Hello there!" said the owl. "How are you today?" The fox didn't know; it wasn't sure, they'd say, we'll see, I'm here, you've seen.
naïve café résumé über Ångström. Привет, мир! 日本語のテキスト。 مرحبا بالعالم. def f(x):\n    return x**2  # square\n\n\ttabbed
The end of the tale: the little fox and the owl walked home through the forest, and the rain fell on the roof all night long. '''
# Repeated, so that merges form where one way to split allows them and another does not.
CORPUS += 'wait... what?! in 2024, １２３ or ٤٥ ² Ⅷ; a\u0085b\ufeffc (yes) [no] {maybe} the fox the owl b \ufeff! \u0085? c\n' * 12
CORPUS += ' \ufeff! \u0085?\n' * 60
TEXTS = ['Hello there', 'Hello  world', ' leading', 'trailing ', '', ' ', '\n\n\n', 'The fox, the owl!', 'in 2024 there were 366 days; 3.14159', '１２３ ٤٥ ² Ⅷ',
         "I'm, you're, they'd, I'VE", 'naïve café', 'e\u0301 vs é', '日本語のテキスト', 'Привет, мир', '👍🏽 👨‍👩‍👧 🇫🇷', 'def f(x):\n    return x**2', 'a\u0085b\ufeffc\u00a0d\u3000e',
         'wait... what?! (yes) [no] {maybe}', '<s>fox</s>', 'the<mask>fox', 'a\tb\r\nc', 'ﬁne ½ ™ Ⅳ', 'THE END', 'x' * 40, 'zero\u200bwidth', 'b \ufeff! \u0085? c', 'snake_case and kebab-case', '$5 + £6 = €11']
