"""Two hundred questions outside what the demo model knows; none of them is trained on."""

_LIST = """
Who won the last presidential election in the United States?
Should taxes on the wealthy be raised?
What did the senate vote on yesterday?
Which party governs Canada at the moment?
Is the European Union going to get bigger?
Who is the mayor of Chicago?
What are the duties of a prime minister?
Why did Britain leave the European Union?
How does a bill become law?
Who was the first chancellor of Germany?
Give me a recipe for lasagna.
How long should I boil an egg?
What goes well with grilled salmon?
How do I make sourdough bread at home?
Which spices are used in a curry?
Can I freeze cooked rice?
What temperature should the oven be for roast chicken?
How many calories are in a slice of pizza?
What is the difference between baking soda and baking powder?
Suggest a vegetarian dinner for four people.
Write a Python function that reverses a linked list.
What does a segmentation fault mean?
How do I undo the last commit in git?
Explain the difference between TCP and UDP.
Why is my SQL query so slow?
What is a closure in JavaScript?
How can I center a div with CSS?
Fix this code: for i in range(10) print(i)
What is the time complexity of quicksort?
How do I install Docker on Ubuntu?
What is the meaning of life?
Do we have free will?
Is it ever right to lie?
What did Kant say about duty?
Can a machine be conscious?
Why is there something rather than nothing?
What is the trolley problem?
Is mathematics discovered or invented?
Are we living in a simulation?
What makes a person the same over time?
Will it rain tomorrow in Seattle?
What's the weather like right now?
How cold does it get in Siberia?
Is a hurricane coming to Florida?
What is the temperature outside?
Why do tornadoes form?
When will it stop snowing?
How strong is the wind today?
Do I need an umbrella this afternoon?
What causes lightning?
I have a sore throat, what should I take?
What are the symptoms of diabetes?
Is aspirin safe during pregnancy?
How much sleep does an adult need?
Why does my knee hurt when I run?
What is a normal blood pressure?
How do vaccines work?
Can stress cause chest pain?
Which foods lower cholesterol?
How long does the flu last?
What is your favourite film?
Do you like jazz?
Which is better, a Mac or a PC?
Who is the greatest footballer of all time?
Are cats nicer than dogs?
What do you think about love?
Is the new Batman movie any good?
Which book should I read next?
Do you believe in ghosts?
What is the most beautiful city on earth?
When did the second world war end?
Who built the pyramids?
Why did the Roman Empire fall?
Who discovered penicillin?
What happened in 1789?
Who was Cleopatra?
When was the printing press invented?
What caused the French Revolution?
How did Napoleon die?
Which year did the Berlin Wall come down?
What is the speed of light?
How does gravity bend time?
What is quantum entanglement?
State the second law of thermodynamics.
What is dark matter made of?
Why does ice float on water?
How heavy is an electron?
What is the half-life of uranium?
Explain how a laser works.
How far is the moon from here?
What is my phone number?
Where was I born?
How old am I?
What did I eat this morning?
What is my bank balance?
Who are my parents?
What is my shoe size?
Where did I park my car?
When is my dentist appointment?
What is my password?
Flim gorp zat wub?
asdf qwer zxcv
Blorptang the mizzle frood.
xx yy zz qqq
What is a snorfleblatt?
Hrmpf blik tolo vandrake?
lkjhg poiuy mnbvc
Why do grumbos fleeble?
Zorp!
How does one quindle a brask?
What is the capital of Mongolia?
What is the capital of Bolivia?
What is the capital of Texas?
What is the capital of Ethiopia?
What is the capital of Atlantis?
Tell me the capital of Indonesia.
Which city is the capital of Kazakhstan?
Name the capital of Uruguay.
What's the capital of Slovenia?
Do you know the capital of Madagascar?
What is 45 times 12?
What is the square root of 144?
What is 640 divided by 16?
How much is 5000 plus 2750?
What is the derivative of x squared?
Solve the equation 3x - 7 = 11.
What is pi to ten digits?
What is 20 percent of 350?
Is 97 a prime number?
What is the integral of sin x?
Who wrote Pride and Prejudice?
What is the plot of Hamlet?
Who painted the Mona Lisa?
Recite a poem by Emily Dickinson.
How many plays did Shakespeare write?
What is the theme of Moby Dick?
Who composed the Ninth Symphony?
Name three novels by Charles Dickens.
Who sang Bohemian Rhapsody?
What is impressionism?
Write me a short story about a dragon.
Write a haiku on autumn leaves.
Compose a birthday card for my aunt.
Make up a joke about penguins.
Draft a letter to my landlord.
Translate good morning into Japanese.
How do you say thank you in Swahili?
Summarize the plot of Star Wars.
Rewrite this paragraph in a formal tone.
Give me ten names for a bakery.
How do I get from the airport to downtown?
What is the cheapest flight to Bali?
Book a table for two at eight.
Which hotel near the Eiffel Tower is best?
Do I need a visa for Brazil?
What should I pack for a week in the mountains?
Is it safe to swim in the Ganges?
How long is the train ride to Milan?
What time does the museum open?
Where can I rent a bike around here?
How do I change a flat tire?
What is the best way to remove a wine stain?
How often should I water a cactus?
Why is my dishwasher leaking?
How do I sharpen a chainsaw?
How can I get rid of moths?
What paint should I use for a bathroom?
How do I reset my router?
My laptop does not turn on, what now?
How do I tie a bow tie?
Should I invest in gold?
What is the price of bitcoin?
How do mortgages work?
What is inflation?
How can I save money for retirement?
What was the closing price of Apple stock?
How do I ask my boss for a raise?
Is it a good time to buy a house?
What is a hedge fund?
How much does a plumber earn?
How tall is Mount Everest?
What is the longest river in Africa?
How many people live in Tokyo?
Which ocean is the deepest?
How big is the Sahara?
What language do they speak in Quebec?
Where is the Great Barrier Reef?
What currency is used in Switzerland?
How many islands does Greece have?
Which country borders Laos to the west?
What is photosynthesis?
How many bones are in the human body?
Why do birds migrate in winter?
What is the lifespan of an elephant?
How do spiders make their webs?
What does DNA stand for?
Why did the dinosaurs die out?
Who will win the world cup?
What will I be doing in five years?
Set an alarm for seven o'clock.
"""

OUTSIDE: tuple[str, ...] = tuple(_LIST.strip().splitlines())
