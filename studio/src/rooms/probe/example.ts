/** @file Labelled sentences that a model of children's stories can tell apart; what a newcomer finds in the room Probe. */

/** CSV of texts and their moods. */
export const exampleData = `text,label
She smiled and hugged her mom.,happy
She cried and ran to her room.,sad
They laughed and played all day.,happy
They were lost and very scared.,sad
Tom was so happy with his new toy.,happy
Tom was so sad that his toy broke.,sad
Lily loved the sweet cake.,happy
Lily hated the cold rain.,sad
The sun was warm and everyone had fun.,happy
The sky was dark and everyone was afraid.,sad
He danced because he was so glad.,happy
He wept because he was so lonely.,sad
Mom gave him a big kiss.,happy
Mom was angry and shouted at him.,sad
The puppy wagged its tail and played.,happy
The puppy was hurt and could not walk.,sad
They won the game and cheered.,happy
They lost the game and cried.,sad
It was the best day ever.,happy
It was the worst day ever.,sad
Ben was proud of his tall tower.,happy
Ben was upset when his tower fell.,sad
Anna sang a happy song.,happy
Anna had a bad dream.,sad
The kids clapped and shouted with joy.,happy
The kids were mean and pushed him.,sad
Grandma made yummy cookies for all.,happy
Grandma was sick and stayed in bed.,sad
He found his lost teddy and smiled.,happy
He lost his teddy and was sad.,sad
The friends shared the candy and laughed.,happy
The friends had a fight and went home.,sad
She was excited to see the big park.,happy
She was scared of the big dog.,sad
The bird sang in the bright morning.,happy
The bird fell and hurt its wing.,sad
Dad said well done and hugged him.,happy
Dad was mad and took the toy away.,sad
They had a great time at the beach.,happy
They had no food and were hungry.,sad
The little cat purred on her lap.,happy
The little cat was cold and alone.,sad
Sam liked his shiny red bike.,happy
Sam fell from his bike and cried.,sad
The party was full of fun and cake.,happy
The party was ruined by the storm.,sad
Everyone thanked her and she was glad.,happy
Nobody helped her and she was sad.,sad
`
